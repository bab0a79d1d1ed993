"""Tasks for the worker, queued when the current transaction commits. A lost one is healed by what the rows say.

Dispatches and stores have no row of their own in the queue, so that they cannot pile up there: a NOTIFY has the worker
look at the job table at once (`jobs/queue.py`), which it does once a second in any case.
"""

import uuid

from django.conf import settings
from django.db import transaction
from django_q.tasks import async_task

from generation import database
from generation.jobs import locks, queue
from generation.models import GpuNode, JobAttempt


@transaction.atomic
def store(*, attempt_id: uuid.UUID, pause: float = 0.0) -> None:
    """Have the file fetched and stored, after `pause` seconds. The attempt's lease is free until a worker takes it."""
    JobAttempt.objects.filter(pk=attempt_id).update(lease_token=None, lease_expires_at=locks.until(pause))
    database.notify(queue.CHANNEL, queue.STORE)


def dispatch() -> None:
    database.notify(queue.CHANNEL, queue.DISPATCH)


def remove_files() -> None:
    async_task("generation.jobs.tasks.remove_files")


def add_up() -> None:
    """Have the figures of staff added up: the days that are over, and once a day the books."""
    async_task("generation.staff.stats.keep")
    async_task("accounts.ledger_check.audit_daily")


def stop_what_was_lost(node: GpuNode) -> None:
    """Have a node that is back after a silence stop what was taken from it meanwhile."""
    lately = locks.until(-settings.JOB_DEADLINE_SECONDS)
    lost = JobAttempt.objects.filter(node=node, state=JobAttempt.State.LOST, closed_at__gt=lately)
    for attempt_id in lost.exclude(remote_id="").exclude(silent_since=None).values_list("pk", flat=True)[:50]:
        async_task("generation.staff.jobs.stop_on_node", str(attempt_id))
