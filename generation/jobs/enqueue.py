"""Tasks for the worker, queued when the current transaction commits. A lost one is healed by what the rows say.

Dispatches and stores have no row of their own in the queue, so that they cannot pile up there: a NOTIFY has the worker
look at the job table at once (`jobs/queue.py`), which it does once a second in any case.
"""

import uuid

from django.db import transaction
from django_q.tasks import async_task

from generation import database
from generation.jobs import locks, queue
from generation.models import JobAttempt


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
