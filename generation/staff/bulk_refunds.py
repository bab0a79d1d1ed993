"""Bulk refunds: credits of many jobs given back in one decision, such as all that a node charged for in a bad night.

The decision is one transaction (`start`); it is carried out in the background, one job a transaction, so that it can be
cut off anywhere and gone on with. A job is refunded once, by whichever operation comes first.
"""

import logging
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts import notices
from accounts.models import Notice, User
from accounts.staff.actor import Refused
from accounts.staff.audit_log import Operation, operation
from generation.jobs import lifecycle
from generation.models import BulkRefund, BulkRefundItem, GenerationJob, GpuNode
from generation.staff.jobs import check_refund_limit, lock, refunded, why_not_refund

logger = logging.getLogger(__name__)

MOST_JOBS = 20_000
# A task works for so long and is followed by another one, far from the time at which it would be cut off.
SECONDS_A_TASK = 30.0
STALLED = timedelta(minutes=1)
TASK = "generation.staff.bulk_refunds.carry_on"


@dataclass(frozen=True)
class Total:
    """The size of a bulk refund."""

    jobs: int
    people: int
    credits: int

    def __str__(self) -> str:
        """Put it in words, such as `3 videos of 1 user, 150 credits`."""
        videos = "1 video" if self.jobs == 1 else f"{self.jobs} videos"
        users = "1 user" if self.people == 1 else f"{self.people} users"
        return f"{videos} of {users}, {self.credits} credits"


def charged_on(*, node: GpuNode, since: datetime, until: datetime) -> "QuerySet[GenerationJob]":
    """Select videos that `node` finished in that time and that are charged and not refunded."""
    ended = GenerationJob.objects.filter(finished_at__gte=since, finished_at__lt=until)
    return not_refunded(ended.filter(current_attempt__node=node))


def not_refunded(jobs: "QuerySet[GenerationJob]") -> "QuerySet[GenerationJob]":
    """Select those of `jobs` that are charged and not refunded."""
    return jobs.filter(state=GenerationJob.State.COMPLETED, cost__gt=0).exclude(refunded())


def total_of(jobs: "QuerySet[GenerationJob]") -> Total:
    """Compute the total that `start` would refund now."""
    found = jobs.order_by().aggregate(
        jobs=Count("pk"), people=Count("user", distinct=True), credits=Sum("cost")
    )
    return Total(jobs=found["jobs"], people=found["people"], credits=found["credits"] or 0)


@operation("generation.refund_job", "batch.refund")
def start(
    op: Operation,
    jobs: "QuerySet[GenerationJob]",
    expected: Total,
    node: GpuNode | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> BulkRefund:
    """Decide to refund these jobs and have it carried out.

    expected: the total that the actor was shown.

    Raises:
        Refused: nothing is left to refund, the total has changed, or it is more than the actor may refund
        (BeyondLimit).
    """
    total = total_of(jobs)
    if not total.jobs:
        raise Refused("There is nothing left to refund.")
    if total.jobs > MOST_JOBS:
        raise Refused(
            f"These are {total.jobs} videos. Please choose a shorter time: at most {MOST_JOBS} at once."
        )
    if total != expected:
        raise Refused(f"It has changed meanwhile: {total}. Please look at it again.")
    check_refund_limit(op.actor, total.credits)
    window = {"node": node, "since": since, "until": until}
    batch = BulkRefund(
        actor=op.actor.user, reason=op.reason, jobs=total.jobs, credits=total.credits, **window
    )
    op.record(batch, after=window | {"videos": total.jobs, "users": total.people}, credits=total.credits)
    batch.save(force_insert=True)
    items = [BulkRefundItem(batch=batch, job_id=pk) for pk in jobs.order_by().values_list("pk", flat=True)]
    BulkRefundItem.objects.bulk_create(items, batch_size=1000)
    async_task(TASK, str(batch.pk))
    return batch


def carry_on(batch_id: str) -> None:
    """Refund what still waits, as a task, for SECONDS_A_TASK. Safe to repeat, and to run twice at the same time."""
    running = BulkRefund.objects.select_related("actor").filter(state=BulkRefund.State.RUNNING)
    batch = running.filter(pk=batch_id).first()
    if batch is None:
        return
    end = time.monotonic() + SECONDS_A_TASK
    while time.monotonic() < end:
        if not _refund_next(batch):
            _finish(batch)
            return
    async_task(TASK, batch_id)


def wake_stalled() -> None:
    """Queue a new task for each bulk refund whose task was lost with its worker. The reconciler calls it."""
    stalled = BulkRefund.objects.filter(state=BulkRefund.State.RUNNING, moved_at__lt=Now() - STALLED)
    for pk in stalled.values_list("pk", flat=True):
        if stalled.filter(pk=pk).update(moved_at=Now()):
            logger.warning("bulk refund %s goes on: its task was lost", pk.hex)
            async_task(TASK, str(pk))


@transaction.atomic
def _refund_next(batch: BulkRefund) -> bool:
    """Refund one job; False when none waits that is not locked by another task."""
    waiting = batch.items.filter(state=BulkRefundItem.State.WAITING).select_related("job")
    item = waiting.select_for_update(skip_locked=True, of=("self",)).order_by("pk").first()
    if item is None:
        return False
    job = lock(item.job)
    why = why_not_refund(job)
    if why is None:
        lifecycle.refund(job=job, reason=batch.reason, actor=batch.actor)
    state = BulkRefundItem.State.PASSED_OVER if why else BulkRefundItem.State.REFUNDED
    BulkRefundItem.objects.filter(pk=item.pk).update(state=state, note=(why or "")[:200])
    BulkRefund.objects.filter(pk=batch.pk).update(moved_at=Now())
    return True


@transaction.atomic
def _finish(batch: BulkRefund) -> None:
    """Close the bulk refund and notify each user once. Of several tasks that find nothing left, one does it."""
    if batch.items.filter(state=BulkRefundItem.State.WAITING).exists():
        return  # another task is at the last of them, and finishes
    running = BulkRefund.objects.filter(pk=batch.pk, state=BulkRefund.State.RUNNING)
    if not running.update(state=BulkRefund.State.DONE, finished_at=Now()):
        return
    back: dict[int, list[int]] = defaultdict(list)
    done = batch.items.filter(state=BulkRefundItem.State.REFUNDED)
    for owner, cost in done.values_list("job__user", "job__cost"):
        back[owner].append(cost)
    for user in User.objects.filter(pk__in=back).order_by("pk"):
        costs = back[user.pk]
        facts = {"videos": len(costs), "credits": sum(costs), "reason": batch.reason}
        notices.tell(user=user, kind=Notice.Kind.REFUND, **facts)


def progress(batch: BulkRefund) -> dict[str, int]:
    """Count the jobs in each state."""
    counts = dict(batch.items.order_by().values_list("state").annotate(number=Count("pk")))
    return {state: counts.get(state, 0) for state in BulkRefundItem.State.values}
