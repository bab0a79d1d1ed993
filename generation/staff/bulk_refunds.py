"""A bad night of a node: everything it charged for in that time is given back, in one decision.

The decision is one transaction (`start`); it is carried out in the background, one job a transaction, so that it can be
cut off anywhere and gone on with: what is refunded is refunded once, whoever did it. Only compensating entries undo it.
"""

import logging
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, QuerySet, Sum
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts import notices
from accounts.models import Notice, User
from accounts.staff import audit_log
from accounts.staff.actor import Actor, Refused
from generation.jobs import lifecycle
from generation.models import BatchedRefund, GenerationJob, GpuNode, RefundBatch
from generation.staff.jobs import check_refund_limit, lock, refunded, why_not_refund

logger = logging.getLogger(__name__)

MOST_JOBS = 20_000
# A task works for so long and is followed by another one, far from the time at which it would be cut off.
SECONDS_A_TASK = 30.0
STALLED = timedelta(minutes=1)
TASK = "generation.staff.bulk_refunds.carry_on"


@dataclass(frozen=True)
class Plan:
    """What a refund of these jobs would come to."""

    jobs: int
    people: int
    credits: int


def in_words(plan: Plan) -> str:
    """For the staff, e.g. `3 videos of 1 user, 150 credits`."""
    videos = "1 video" if plan.jobs == 1 else f"{plan.jobs} videos"
    users = "1 user" if plan.people == 1 else f"{plan.people} users"
    return f"{videos} of {users}, {plan.credits} credits"


def charged_on(*, node: GpuNode, since: datetime, until: datetime) -> "QuerySet[GenerationJob]":
    """Videos that `node` made, whose making ended in that time and that were not refunded yet."""
    ended = GenerationJob.objects.filter(finished_at__gte=since, finished_at__lt=until)
    return not_refunded(ended.filter(current_attempt__node=node))


def not_refunded(jobs: "QuerySet[GenerationJob]") -> "QuerySet[GenerationJob]":
    """Of these, the ones that were charged and are not refunded."""
    return jobs.filter(state=GenerationJob.State.COMPLETED, cost__gt=0).exclude(refunded())


def dry_run(jobs: "QuerySet[GenerationJob]") -> Plan:
    """What `start` would do with these jobs now."""
    found = jobs.order_by().aggregate(
        jobs=Count("pk"), people=Count("user", distinct=True), credits=Sum("cost")
    )
    return Plan(jobs=found["jobs"], people=found["people"], credits=found["credits"] or 0)


@transaction.atomic
def start(
    *,
    actor: Actor,
    jobs: "QuerySet[GenerationJob]",
    plan: Plan,
    reason: str,
    once: uuid.UUID,
    node: GpuNode | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> RefundBatch:
    """Decide to refund these jobs and have it carried out.

    plan: what the actor was shown; nothing is done when it would be something else by now.

    Raises:
        NotPermitted: the actor may not. Refused: nothing is left to refund, the plan has changed, or it is more than
        the actor may refund (BeyondLimit).
    """
    actor.must("generation.refund_job")
    now = dry_run(jobs)
    if not now.jobs:
        raise Refused("There is nothing left to refund.")
    if now.jobs > MOST_JOBS:
        raise Refused(
            f"These are {now.jobs} videos. Please choose a shorter time: at most {MOST_JOBS} at once."
        )
    if now != plan:
        raise Refused(f"It has changed meanwhile: {in_words(now)}. Please look at it again.")
    check_refund_limit(actor, now.credits)
    batch = RefundBatch(
        actor=actor.user,
        reason=reason,
        node=node,
        since=since,
        until=until,
        jobs=now.jobs,
        credits=now.credits,
    )
    audit_log.record(
        actor=actor,
        act="batch.refund",
        subject=batch,
        reason=reason,
        after={"node": node, "since": since, "until": until, "videos": now.jobs, "users": now.people},
        credits=now.credits,
        once=once,
    )
    batch.save(force_insert=True)
    items = [BatchedRefund(batch=batch, job_id=pk) for pk in jobs.order_by().values_list("pk", flat=True)]
    BatchedRefund.objects.bulk_create(items, batch_size=1000)
    async_task(TASK, str(batch.pk))
    return batch


def carry_on(batch_id: str) -> None:
    """A task: refund what still waits, for SECONDS_A_TASK. Safe to repeat, and to run twice at the same time."""
    batch = (
        RefundBatch.objects.select_related("actor")
        .filter(pk=batch_id, state=RefundBatch.State.RUNNING)
        .first()
    )
    if batch is None:
        return
    end = time.monotonic() + SECONDS_A_TASK
    while time.monotonic() < end:
        if not _refund_next(batch):
            _finish(batch)
            return
    async_task(TASK, batch_id)


def wake_stalled() -> None:
    """For the reconciler: a batch whose task was lost with its worker goes on."""
    stalled = RefundBatch.objects.filter(state=RefundBatch.State.RUNNING, moved_at__lt=Now() - STALLED)
    for pk in stalled.values_list("pk", flat=True):
        if stalled.filter(pk=pk).update(moved_at=Now()):
            logger.warning("refund %s goes on: its task was lost", pk.hex)
            async_task(TASK, str(pk))


@transaction.atomic
def _refund_next(batch: RefundBatch) -> bool:
    """One job of the batch; False when none waits that nobody else is at."""
    waiting = batch.items.filter(state=BatchedRefund.State.WAITING).select_related("job")
    item = waiting.select_for_update(skip_locked=True, of=("self",)).order_by("pk").first()
    if item is None:
        return False
    job = lock(item.job)
    why = why_not_refund(job)
    if why is None:
        lifecycle.refund(job=job, reason=batch.reason, actor=batch.actor)
    state = BatchedRefund.State.PASSED_OVER if why else BatchedRefund.State.REFUNDED
    BatchedRefund.objects.filter(pk=item.pk).update(state=state, note=(why or "")[:200])
    RefundBatch.objects.filter(pk=batch.pk).update(moved_at=Now())
    return True


@transaction.atomic
def _finish(batch: RefundBatch) -> None:
    """Once, by whoever finds that nothing waits any more: everybody is told, each of them once."""
    if batch.items.filter(state=BatchedRefund.State.WAITING).exists():
        return  # another task is at the last of them, and finishes
    running = RefundBatch.objects.filter(pk=batch.pk, state=RefundBatch.State.RUNNING)
    if not running.update(state=RefundBatch.State.DONE, finished_at=Now()):
        return
    back: dict[int, list[int]] = defaultdict(list)
    done = batch.items.filter(state=BatchedRefund.State.REFUNDED)
    for owner, cost in done.values_list("job__user", "job__cost"):
        back[owner].append(cost)
    for user in User.objects.filter(pk__in=back).order_by("pk"):
        costs = back[user.pk]
        facts = {"videos": len(costs), "credits": sum(costs), "reason": batch.reason}
        notices.tell(user=user, kind=Notice.Kind.REFUND, **facts)


def progress(batch: RefundBatch) -> dict[str, int]:
    """How many of the batch's jobs are in which state."""
    counts = batch.items.order_by().values("state").annotate(number=Count("pk"))
    found = {row["state"]: row["number"] for row in counts}
    return {state: found.get(state, 0) for state in BatchedRefund.State.values}
