"""Operations of the staff on jobs: cancel, refund, move to another node, retry; and how much an actor may refund.

What is done to a selection takes the queries of one job: one transaction that locks all rows in the order of
`jobs/locks.py`. The same for one job is a selection of one.
"""

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, Now
from django_q.tasks import async_task

from accounts import ledger, notices
from accounts.models import CreditTransaction, Notice
from accounts.staff import audit_log
from accounts.staff.actor import Actor, NeedsApproval, refuse
from accounts.staff.audit_log import Operation, Outcome, operation
from generation.errors import BeingStored
from generation.jobs import lifecycle, locks, scheduling, submission
from generation.jobs.events import jobs_retried
from generation.jobs.node_health import endpoint_of
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.models.fields import public_id
from generation.nodes import NodeError, open_client

logger = logging.getLogger(__name__)
State = GenerationJob.State

REFUNDS = ("job.refund", "batch.refund")


@operation("generation.cancel_job", "job.cancel")
def cancel_each(op: Operation, jobs: Sequence[GenerationJob]) -> Outcome[GenerationJob]:
    """Stop jobs that are queued or running and release their credits."""
    found = op.possible(_locked(jobs), why_not_cancel)
    op.record_each([(job, {"state": job.state}, {"state": State.CANCELED}) for job in found])
    chosen = GenerationJob.objects.filter(pk__in=[job.pk for job in found])
    return op.outcome(lifecycle.cancel_each(jobs=chosen, actor=op.actor.user, reason=op.reason))


def cancel(job: GenerationJob, **how: Any) -> GenerationJob:
    """Do as `cancel_each` for one. Raises Refused when it is being stored, or has ended."""
    return cancel_each([job], **how).only()


def _locked(jobs: Sequence[GenerationJob]) -> "QuerySet[GenerationJob]":
    """Lock jobs and their open attempts, and select them with what is asked about each."""
    chosen = GenerationJob.objects.filter(pk__in=[job.pk for job in jobs])
    locks.lock_jobs(chosen)
    return with_made_again(chosen.select_related("user", "preset"))


def why_not_cancel(job: GenerationJob) -> str | None:
    """Explain why a job cannot be canceled; None when it can."""
    if job.state == State.STORING:
        return BeingStored().message
    return None if job.is_live else f"This video is {job.state} already, so there is nothing to cancel."


@operation("generation.refund_job", "job.refund")
def refund(op: Operation, job: GenerationJob | str) -> int:
    """Give back, once, the credits of a completed job, or of the one with this key; returns them.

    Raises:
        Refused: it was not charged, it was refunded before, or it is the actor's own.
        NeedsApproval: it is more than the actor may refund alone.
    """
    job = lock(job)
    refuse(why_not_refund(job))
    op.begin_gift([job.user_id])
    amount = job.cancel_fee or job.cost
    summary = f"{amount} credits of {job.public_id} back to {job.user}"
    check_refund_limit(op, NeedsApproval(summary, credits=amount, arguments={"job": str(job.pk)}))
    op.record(job, before={"refunded": 0}, after={"refunded": amount}, credits=amount)
    lifecycle.refund(job=job, reason=op.reason, actor=op.actor.user)
    notices.tell(user=job.user, kind=Notice.Kind.REFUND, videos=1, credits=amount, reason=op.reason)
    return amount


def why_not_refund(job: GenerationJob) -> str | None:
    """Explain why a job's credits cannot be given back; None when they can."""
    if job.is_live:
        return "This video is still being made: cancel it, and its credits are given back."
    receipt = lifecycle.receipt(job)
    if receipt["refunded"]:
        return f"The {receipt['refunded']} credits of this video were refunded before."
    return None if receipt["captured"] else "This video was not charged, so there is nothing to refund."


def refunded() -> Exists:
    """Make a condition for queries of jobs: the credits were given back."""
    refunds = CreditTransaction.objects.filter(kind=CreditTransaction.Kind.REFUND, reference=OuterRef("pk"))
    return Exists(refunds)


def with_charged(jobs: "QuerySet[GenerationJob]") -> "QuerySet[GenerationJob]":
    """Annotate jobs with the credits that they cost in the end, by the ledger: what was captured and not refunded."""
    kinds = [CreditTransaction.Kind.CAPTURE, CreditTransaction.Kind.REFUND]
    entries = CreditTransaction.objects.filter(reference=OuterRef("pk"), kind__in=kinds)
    sums = entries.order_by().values("reference").annotate(sum=-Sum("posted_delta")).values("sum")
    return jobs.annotate(charged=Coalesce(Subquery(sums), 0), refunded=refunded())


def lock(job: GenerationJob | str) -> GenerationJob:
    """Read a job, or the one with this key, with its owner, locked against other refunds and a merge of accounts.

    Wallets come after jobs (generation/jobs/locks.py), and which of them are moved the ledger knows.
    """
    rows = GenerationJob.objects.select_for_update(no_key=True, of=("self",)).select_related("user")
    return rows.get(pk=job if isinstance(job, str) else job.pk)


def refund_limit_left(actor: Actor) -> int | None:
    """Credits that the actor may still refund; None: any number.

    The limit is for all refunds of a day: one for each refund would limit nothing, as refunds can be repeated.
    """
    if actor.may("generation.refund_any_amount"):
        return None
    spent = audit_log.given_today(actor.user, REFUNDS, approved_by=None)
    return max(0, settings.REFUND_LIMIT_CREDITS - spent)


def check_refund_limit(op: Operation, needed: NeedsApproval) -> None:
    """Raise `needed` where it is more than the actor may refund; a colleague who may refund any amount approves it."""
    permission = "generation.refund_any_amount"
    needed.values["permission"] = permission
    op.check_alone(needed, REFUNDS, None if op.actor.may(permission) else settings.REFUND_LIMIT_CREDITS)


@operation("generation.move_job", "job.move")
def move_each(op: Operation, jobs: Sequence[GenerationJob], target: GpuNode) -> Outcome[JobAttempt]:
    """End the open attempts of running jobs and open others on `target`, as far as it has free slots.

    They begin afresh, and do not count towards JOB_MAX_ATTEMPTS.
    """
    node = GpuNode.objects.select_for_update(no_key=True).get(pk=target.pk)
    chosen, room = _locked(jobs), scheduling.Room(node)
    open_ones = JobAttempt.objects.filter(job__in=[job.pk for job in jobs], state=JobAttempt.State.OPEN)
    old = {attempt.job_id: attempt for attempt in open_ones.select_related("node")}

    def why_not(job: GenerationJob) -> str | None:
        if (why := why_not_move(job)) is not None:
            return why
        if job.pk not in old or old[job.pk].pk != job.current_attempt_id:
            return "This video has just ended, or went to another node."
        if node.pk == old[job.pk].node_id:
            return f"It is being made on {node} already."
        why = room.take(job)
        return why and f"{node} {why}."

    found = op.possible(chosen, why_not)
    op.record_each([(job, {"node": str(old[job.pk].node)}, {"node": str(node)}) for job in found])
    moved = [old[job.pk].pk for job in found]
    JobAttempt.objects.filter(pk__in=moved).update(
        state=JobAttempt.State.CANCELED, closed_at=Now(), error=f"moved to {node} by staff: {op.reason}"[:500]
    )
    attempts = scheduling.open_attempts([(job, node) for job in found], counts=False)
    if moved:
        async_task("generation.staff.jobs.stop_on_nodes", [str(pk) for pk in moved])
    return op.outcome(attempts)


def move(job: GenerationJob, target: GpuNode, **how: Any) -> JobAttempt:
    """Do as `move_each` for one. Raises Refused when it does not run, or the node cannot take it now."""
    return move_each([job], target, **how).only()


def why_not_move(job: GenerationJob) -> str | None:
    """Explain why a job cannot be moved; None when it can."""
    if job.state == State.QUEUED:
        return "This video still waits: it goes to whichever node is free first."
    if job.state == State.STORING:
        return "This video is made already and being stored."
    return None if job.state == State.RUNNING else f"This video is {job.state} already."


def stop_on_nodes(attempt_ids: list[str]) -> None:
    """Cancel attempts on their nodes, as a task. A node that does not answer works on, and its result is discarded."""
    attempts = JobAttempt.objects.select_related("node").filter(pk__in=attempt_ids).exclude(remote_id="")
    async_to_sync(_stop_all)(list(attempts))


async def _stop_all(attempts: list[JobAttempt]) -> None:
    answers = await asyncio.gather(*map(stop, attempts), return_exceptions=True)
    for attempt, answer in zip(attempts, answers, strict=True):
        if isinstance(answer, NodeError):
            logger.info("attempt %s could not be stopped on %s: %s", attempt.pk, attempt.node, answer)
        elif isinstance(answer, BaseException):
            raise answer


async def stop(attempt: JobAttempt) -> None:
    """Cancel an attempt on its node. Raises NodeError."""
    async with open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.cancel(attempt.remote_id)


@operation("generation.retry_job", "job.retry")
def retry_each(op: Operation, jobs: Sequence[GenerationJob]) -> Outcome[GenerationJob]:
    """Queue failed videos again for their users, at no cost; each is delivered where it was asked for."""
    found = op.possible(_locked(jobs), why_not_retry)
    op.record_each([(job, {}, {}) for job in found])
    wallets = {wallet.user_id: wallet for wallet in ledger.lock_accounts(users=[job.user for job in found])}
    again = submission.submit_again(found, wallets=wallets)
    jobs_retried.send(sender=GenerationJob, pairs=list(zip(found, again, strict=True)))
    return op.outcome(again)


def retry(job: GenerationJob, **how: Any) -> GenerationJob:
    """Do as `retry_each` for one. Raises Refused when it did not fail, was retried before, or its owner is gone."""
    return retry_each([job], **how).only()


def why_not_retry(job: GenerationJob) -> str | None:
    """Explain why a job cannot be made again; None when it can."""
    if job.state != State.FAILED:
        return f"This video is {job.state}: only what failed is made again."
    if job.deleted_at is not None or not job.user.is_active:
        return "Its owner has deleted it, or may not sign in."
    again = vars(job)["made_again"] if "made_again" in vars(job) else made_again(job)
    return f"This video was made again before. The new one is {public_id(again)}." if again else None


def made_again(job: GenerationJob) -> uuid.UUID | None:
    """Find the job by which staff had this one made again."""
    return (
        GenerationJob.objects.filter(source=GenerationJob.Source.STAFF, remixed_from=job)
        .values_list("pk", flat=True)
        .first()
    )


def with_made_again(jobs: "QuerySet[GenerationJob]") -> "QuerySet[GenerationJob]":
    """Annotate jobs with what `why_not_retry` asks about each."""
    retries = GenerationJob.objects.filter(source=GenerationJob.Source.STAFF, remixed_from=OuterRef("pk"))
    return jobs.annotate(made_again=retries.values("pk")[:1])
