"""Operations of the staff on one job: cancel, refund, move to another node, retry; and how much an actor may refund."""

import logging
import uuid
from datetime import timedelta

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, Now
from django_q.tasks import async_task

from accounts import ledger, notices
from accounts.models import AuditEvent, CreditTransaction, Notice, User
from accounts.staff.actor import Actor, Refused, refuse
from accounts.staff.audit_log import Operation, operation
from generation.errors import BeingStored, GenerationError
from generation.jobs import events, lifecycle, scheduling, submission
from generation.jobs.events import job_retried
from generation.jobs.node_health import endpoint_of
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.models.fields import public_id
from generation.nodes import NodeError, open_client

logger = logging.getLogger(__name__)
State = GenerationJob.State

REFUNDS = ("job.refund", "batch.refund")
WINDOW = timedelta(days=1)


class BeyondLimit(Refused):
    """It is more than the actor may refund."""


@operation("generation.cancel_job", "job.cancel")
def cancel(op: Operation, job: GenerationJob) -> GenerationJob:
    """Stop a queued or running job and release its credits. Raises Refused when it is being stored, or has ended."""
    op.record(job, before={"state": job.state}, after={"state": State.CANCELED})
    job.refresh_from_db()
    refuse(why_not_cancel(job))
    try:
        return lifecycle.cancel(job=job, actor=op.actor.user, reason=op.reason)
    except GenerationError as error:
        raise Refused(error.message) from error


def why_not_cancel(job: GenerationJob) -> str | None:
    """Explain why a job cannot be canceled; None when it can."""
    if job.state == State.STORING:
        return BeingStored().message
    return None if job.is_live else f"This video is {job.state} already, so there is nothing to cancel."


@operation("generation.refund_job", "job.refund")
def refund(op: Operation, job: GenerationJob) -> int:
    """Give back, once, the credits of a completed job; returns them.

    Raises:
        Refused: it was not charged, it was refunded before, or it is more than the actor may refund (BeyondLimit).
    """
    check_refund_limit(op.actor, job.cost)
    job = lock(job)
    refuse(why_not_refund(job))
    op.record(job, before={"refunded": 0}, after={"refunded": job.cost}, credits=job.cost)
    lifecycle.refund(job=job, reason=op.reason, actor=op.actor.user)
    notices.tell(user=job.user, kind=Notice.Kind.REFUND, videos=1, credits=job.cost, reason=op.reason)
    return job.cost


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


def lock(job: GenerationJob) -> GenerationJob:
    """Read the job afresh, with its owner, locked against other refunds and against a merge of accounts.

    Wallets come after jobs (generation/jobs/locks.py), and which of them are moved the ledger knows.
    """
    rows = GenerationJob.objects.select_for_update(no_key=True, of=("self",)).select_related("user")
    return rows.get(pk=job.pk)


def refund_limit_left(actor: Actor) -> int | None:
    """Credits that the actor may still refund; None: any number.

    The limit is for all refunds of a day: one for each refund would limit nothing, as refunds can be repeated.
    """
    if actor.may("generation.refund_any_amount"):
        return None
    entries = AuditEvent.objects.filter(actor=actor.user, act__in=REFUNDS, at__gt=Now() - WINDOW)
    spent = entries.aggregate(total=Sum("credits"))["total"] or 0
    return max(0, settings.REFUND_LIMIT_CREDITS - int(spent))


def check_refund_limit(actor: Actor, credits: int) -> None:  # noqa: A002  (credits are credits)
    """Make sure that the actor may refund so many credits, and lock out the actor's other refunds until the end of the
    transaction.

    Raises:
        BeyondLimit: the message names the roles that may.
    """
    User.objects.select_for_update(no_key=True).get(pk=actor.user.pk)
    rest = refund_limit_left(actor)
    if rest is not None and credits > rest:
        raise BeyondLimit(
            f"These are {credits} credits. You may refund {settings.REFUND_LIMIT_CREDITS} in 24 hours and have "
            f"{rest} of them left: please ask a colleague with the role finance or owner."
        )


@operation("generation.move_job", "job.move")
def move(op: Operation, job: GenerationJob, target: GpuNode) -> JobAttempt:
    """End the open attempt and open one on `target`, which begins afresh and does not count towards JOB_MAX_ATTEMPTS.

    Raises:
        Refused: the job does not run, or the node cannot take it now.
    """
    node = GpuNode.objects.select_for_update(no_key=True).get(pk=target.pk)
    attempts = JobAttempt.objects.select_for_update(of=("self",))
    old = attempts.filter(job=job, state=JobAttempt.State.OPEN).first()
    job.refresh_from_db()
    refuse(why_not_move(job))
    if old is None or old.pk != job.current_attempt_id:
        raise Refused("This video has just ended, or went to another node.")
    if node.pk == old.node_id:
        raise Refused(f"It is being made on {node} already.")
    if why := scheduling.why_not_on(node, job):
        raise Refused(f"{node} {why}.")
    op.record(job, before={"node": str(old.node)}, after={"node": str(node)})
    JobAttempt.objects.filter(pk=old.pk).update(
        state=JobAttempt.State.CANCELED, closed_at=Now(), error=f"moved to {node} by staff: {op.reason}"[:500]
    )
    attempt = scheduling.open_attempt(job, node, counts=False)
    GenerationJob.objects.filter(pk=job.pk).update(current_attempt=attempt, started_at=Now(), step=0)
    events.publish(GenerationJob.objects.get(pk=job.pk))
    async_task("generation.staff.jobs.stop_on_node", str(old.pk))
    return attempt


def why_not_move(job: GenerationJob) -> str | None:
    """Explain why a job cannot be moved; None when it can."""
    if job.state == State.QUEUED:
        return "This video still waits: it goes to whichever node is free first."
    if job.state == State.STORING:
        return "This video is made already and being stored."
    return None if job.state == State.RUNNING else f"This video is {job.state} already."


def stop_on_node(attempt_id: str) -> None:
    """Cancel an attempt on its node, as a task. A node that does not answer works on, and its result is discarded."""
    attempt = JobAttempt.objects.select_related("node").filter(pk=attempt_id).first()
    if attempt is None or not attempt.remote_id:
        return
    try:
        async_to_sync(stop)(attempt)
    except NodeError as error:
        logger.info("attempt %s could not be stopped on %s: %s", attempt_id, attempt.node, error)


async def stop(attempt: JobAttempt) -> None:
    """Cancel an attempt on its node. Raises NodeError."""
    async with open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.cancel(attempt.remote_id)


@operation("generation.retry_job", "job.retry")
def retry(op: Operation, job: GenerationJob) -> GenerationJob:
    """Queue a failed video again for its user, at no cost; it is delivered where it was asked for.

    Raises:
        Refused: it did not fail, it was retried before, or its owner is gone.
    """
    wallet = ledger.lock_account(user=job.user)
    job = GenerationJob.objects.select_related("user", "preset").get(pk=job.pk)
    refuse(why_not_retry(job))
    op.record(job)
    again = submission.submit_again(job, wallet=wallet, idempotency_key=_retry_key(job))
    job_retried.send(sender=GenerationJob, original=job, job=again)
    return again


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


def _retry_key(job: GenerationJob) -> str:
    """Make the key that every retry of a job has, so that there is one."""
    return f"staff-retry:{job.id.hex}"
