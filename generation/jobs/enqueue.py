"""Nudges for the worker, each in the transaction that it belongs to. A lost one is healed by the reconciler."""

import uuid

from django.conf import settings
from django.db import transaction
from django_q.tasks import async_task

from generation.jobs import locks
from generation.models import GpuNode, JobAttempt

# A nudge that no worker took up is repeated this much later, not with every sweep of the reconciler.
NUDGE_SECONDS = 5.0


@transaction.atomic
def store(*, attempt_id: uuid.UUID) -> None:
    """Ask a worker to fetch and store the file.

    Nobody drives the attempt until one takes it, but it is not asked for again at once.
    """
    JobAttempt.objects.filter(pk=attempt_id).update(
        lease_token=None, lease_expires_at=locks.until(NUDGE_SECONDS)
    )
    async_task("generation.jobs.tasks.store", str(attempt_id))


def dispatch() -> None:
    """Wake a worker when this transaction commits. A lost nudge is healed by the reconciler."""
    async_task("generation.jobs.tasks.dispatch")


def remove_files() -> None:
    """Have a worker remove the files that no job names, when this transaction commits."""
    async_task("generation.jobs.tasks.remove_files")


def add_up() -> None:
    """Have a worker add up what staff look at: the days that are over, and once a day the books."""
    async_task("generation.staff.stats.keep")
    async_task("accounts.ledger_check.audit_daily")


def stop_what_was_lost(node: GpuNode) -> None:
    """It is back after a silence: what was taken from it meanwhile runs there for nothing. Have a worker say so."""
    lately = locks.until(-settings.JOB_DEADLINE_SECONDS)
    lost = JobAttempt.objects.filter(node=node, state=JobAttempt.State.LOST, closed_at__gt=lately)
    for attempt_id in lost.exclude(remote_id="").exclude(silent_since=None).values_list("pk", flat=True)[:50]:
        async_task("generation.staff.jobs.stop_on_node", str(attempt_id))
