"""Bulk refunds: credits of many jobs given back in one decision, such as all that a node charged for in a bad night.

The decision is one transaction (`start`); it is carried out in the background, one job a transaction, so that it can be
cut off anywhere and gone on with. A job is refunded once, by whichever operation comes first.
"""

import logging
import time
from collections import defaultdict
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts import notices
from accounts.models import Notice, User
from accounts.staff.actor import NeedsApproval, Refused
from accounts.staff.audit_log import Operation, operation
from generation.jobs import lifecycle
from generation.models import BulkRefund, BulkRefundItem, GenerationJob, GpuNode
from generation.staff.jobs import check_refund_limit, lock, refunded, why_not_refund

logger = logging.getLogger(__name__)

MOST_JOBS = 20_000
# A task works for so long and is followed by another one, far from the time at which it would be cut off.
SECONDS_A_TASK = 30.0
STALLED = timedelta(minutes=1)
MOST_TRIES = 3
# They end the task, which is woken again: what follows would fail as well.
CONNECTION_LOST = (OSError, OperationalError, InterfaceError)
TASK = "generation.staff.bulk_refunds.carry_on"


class Total(NamedTuple):
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
    jobs: "QuerySet[GenerationJob] | list[str]",
    expected: Total,
    node: GpuNode | str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> BulkRefund:
    """Decide to refund these jobs, or those with these keys, and have it carried out.

    expected: the total that the actor was shown. node: it, or its name.

    Raises:
        Refused: nothing is left to refund, the total has changed, or the actor's own are among them.
        NeedsApproval: it is more than the actor may refund alone.
    """
    jobs = not_refunded(GenerationJob.objects.filter(pk__in=jobs)).order_by()  # type: ignore[misc]  # of a query, too
    total = total_of(jobs)
    if not total.jobs:
        raise Refused("There is nothing left to refund.")
    if total.jobs > MOST_JOBS:
        raise Refused(
            f"These are {total.jobs} videos. Please choose a shorter time: at most {MOST_JOBS} at once."
        )
    if total != Total(*expected):
        raise Refused(f"It has changed meanwhile: {total}. Please look at it again.")
    op.begin_gift(jobs.values_list("user", flat=True))
    window = {"node": node, "since": since, "until": until}
    keys = [str(pk) for pk in jobs.values_list("pk", flat=True)]
    arguments = {"jobs": keys, "expected": total, **window, "node": node and str(node)}
    where = f" on {node}, {since} to {until}" if node else ""
    check_refund_limit(op, NeedsApproval(f"{total}{where}", credits=total.credits, arguments=arguments))
    window["node"] = GpuNode.objects.filter(name=str(node)).first()
    batch = BulkRefund(
        actor=op.actor.user, reason=op.reason, jobs=total.jobs, credits=total.credits, **window
    )
    op.record(batch, after=window | {"videos": total.jobs, "users": total.people}, credits=total.credits)
    batch.save(force_insert=True)
    items = [BulkRefundItem(batch=batch, job_id=key) for key in keys]
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


def _refund_next(batch: BulkRefund) -> bool:
    """Refund one job; False when none waits that is not locked by another task.

    A refund that raises is tried again after the others, MOST_TRIES times, so that it keeps none of them waiting.
    """
    lost: Exception | None = None
    with transaction.atomic():
        waiting = batch.items.filter(state=BulkRefundItem.State.WAITING).select_related("job")
        item = waiting.select_for_update(skip_locked=True, of=("self",)).order_by("tries", "pk").first()
        if item is None:
            return False
        try:
            with transaction.atomic():
                item.note = _refund(batch, item.job) or ""
            item.state = BulkRefundItem.State.PASSED_OVER if item.note else BulkRefundItem.State.REFUNDED
        except Exception as error:
            logger.exception("bulk refund %s: %s could not be refunded", batch.pk.hex, item.job.public_id)
            lost = error if isinstance(error, CONNECTION_LOST) else None
            item.tries += 1
            item.note = str(error) or repr(error)
            if item.tries == MOST_TRIES:
                item.state = BulkRefundItem.State.FAILED
        item.note = item.note.replace("\x00", "")[:200]
        item.save(update_fields=["state", "tries", "note"])
        BulkRefund.objects.filter(pk=batch.pk).update(moved_at=Now())
    if lost is not None:
        raise lost
    return True


def _refund(batch: BulkRefund, job: GenerationJob) -> str | None:
    """Refund a job, or return the reason why there is nothing to refund."""
    job = lock(job)
    why = why_not_refund(job)
    if why is None:
        lifecycle.refund(job=job, reason=batch.reason, actor=batch.actor)
    return why


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
        try:
            with transaction.atomic():
                notices.tell(user=user, kind=Notice.Kind.REFUND, **facts)
        except Exception:
            logger.exception("bulk refund %s: user %s was not notified", batch.pk.hex, user.pk)


def failed(batch: BulkRefund) -> "QuerySet[BulkRefundItem]":
    """Select the refunds that raised an error each time, with the jobs."""
    return batch.items.filter(state=BulkRefundItem.State.FAILED).select_related("job").order_by("pk")


def progress(batch: BulkRefund) -> dict[str, int]:
    """Count the jobs in each state but FAILED, which `failed` lists."""
    counts = dict(batch.items.order_by().values_list("state").annotate(number=Count("pk")))
    states = [BulkRefundItem.State.WAITING, BulkRefundItem.State.REFUNDED, BulkRefundItem.State.PASSED_OVER]
    return {state.value: counts.get(state, 0) for state in states}
