"""A failed video made again, at the service's expense: nobody but staff asked for it this time."""

import logging
import re
import uuid
from datetime import timedelta

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.postgres.search import SearchQuery, SearchVector
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet, Sum
from django.db.models.functions import Lower, Now
from django_q.tasks import async_task

from accounts import ledger, notices
from accounts.models import CreditTransaction, Notice, StaffAct, User
from accounts.staff import audit_log
from accounts.staff.actor import Actor, Refused
from generation.errors import BeingStored, GenerationError
from generation.jobs import events, lifecycle, locks, scheduling, submission
from generation.jobs.node_health import endpoint_of
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeError, open_client
from generation.signals import job_retried

ACTS = ("job.refund", "batch.refund")
WINDOW = timedelta(days=1)


class BeyondLimit(Refused):
    """It is more than the actor may refund."""


def refund_limit_left(actor: Actor) -> int | None:
    """Credits that the actor may still refund; None: any number."""
    if actor.may("generation.refund_any_amount"):
        return None
    acts = StaffAct.objects.filter(actor=actor.user, act__in=ACTS, at__gt=Now() - WINDOW)
    spent = acts.aggregate(total=Sum("credits"))["total"] or 0
    return max(0, settings.REFUND_LIMIT_CREDITS - int(spent))


def check_refund_limit(actor: Actor, credits: int) -> None:  # noqa: A002  (credits are credits)
    """Make sure that the actor may refund so many. Must be called inside the transaction that refunds them: another
    refund of the same actor waits for its end.

    Raises:
        BeyondLimit: they may not; the message says who may.
    """
    User.objects.select_for_update(no_key=True).get(pk=actor.user.pk)
    rest = refund_limit_left(actor)
    if rest is not None and credits > rest:
        raise BeyondLimit(
            f"These are {credits} credits. You may refund {settings.REFUND_LIMIT_CREDITS} in 24 hours and have "
            f"{rest} of them left: please ask somebody with the role finance or owner."
        )


# Jobs found by words of their prompt or error. An index of PostgreSQL's own text search answers it (`job_words`), so
# that it takes no longer with a million jobs; what every PostgreSQL has is enough: parts within a word, which are
# not found, would want an extension (pg_trgm) that the embedded server does not bring. Ids, names and addresses are no
# words: the list of jobs looks for these itself.


WORD = re.compile(r"[^\W_]+")


def with_words(jobs: "QuerySet[GenerationJob]", text: str) -> "QuerySet[GenerationJob]":
    """Of these, the ones with every word of `text`, or words that begin so, in prompt or error."""
    words = WORD.findall(text.lower())
    if not words:
        return jobs.none()
    query = SearchQuery(" & ".join(f"{word}:*" for word in words), config="simple", search_type="raw")
    return jobs.alias(words=VECTOR).filter(words=query)


def is_by_words(jobs: "QuerySet[GenerationJob]") -> bool:
    return "words" in jobs.query.annotations


# As the index has it, to the letter.
VECTOR = SearchVector(Lower("prompt"), Lower("error_message"), config="simple")


# How much one actor may refund: a limit for each act alone would be none, for it could be taken again and again.


State = GenerationJob.State


@transaction.atomic
def cancel(*, actor: Actor, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> GenerationJob:
    """Stop a queued or running job and give its credits back.

    Raises:
        NotPermitted: the actor may not. Refused: it is being stored, or has ended.
    """
    actor.must("generation.cancel_job")
    audit_log.record(
        actor=actor,
        act="job.cancel",
        subject=job,
        reason=reason,
        before={"state": job.state},
        after={"state": State.CANCELED},
        once=once,
    )
    job.refresh_from_db()
    if why := why_not_cancel(job):
        raise Refused(why)
    try:
        return lifecycle.cancel(job=job, actor=actor.user, reason=reason)
    except GenerationError as error:
        raise Refused(error.message) from error


@transaction.atomic
def refund(*, actor: Actor, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> int:
    """Give back, once, what a completed job cost; returns the credits.

    Raises:
        NotPermitted: the actor may not. Refused: it was not charged, it was refunded before, or it is more than the
        actor may refund in a day.
    """
    actor.must("generation.refund_job")
    check_refund_limit(actor, job.cost)
    job = lock(job)
    if why := why_not_refund(job):
        raise Refused(why)
    audit_log.record(
        actor=actor,
        act="job.refund",
        subject=job,
        reason=reason,
        before={"refunded": 0},
        after={"refunded": job.cost},
        credits=job.cost,
        once=once,
    )
    lifecycle.refund(job=job, reason=reason, actor=actor.user)
    notices.tell(user=job.user, kind=Notice.Kind.REFUND, videos=1, credits=job.cost, reason=reason)
    return job.cost


def refunded() -> Exists:
    """Whether a job's credits were given back: for queries of jobs."""
    refunds = CreditTransaction.objects.filter(kind=CreditTransaction.Kind.REFUND, reference=OuterRef("pk"))
    return Exists(refunds)


def lock(job: GenerationJob) -> GenerationJob:
    """As it is now, with its owner; until the transaction ends nobody else refunds it or hands it to another account.

    Wallets come after jobs (generation/jobs/locks.py), and which of them are moved the ledger knows.
    """
    rows = GenerationJob.objects.select_for_update(no_key=True, of=("self",)).select_related("user")
    return rows.get(pk=job.pk)


def why_not_cancel(job: GenerationJob) -> str | None:
    """Why a job cannot be canceled; None when it can."""
    if job.state == State.STORING:
        return BeingStored().message
    return None if job.is_live else f"This video is {job.state} already, so there is nothing to cancel."


def why_not_refund(job: GenerationJob) -> str | None:
    """Why a job's credits cannot be given back; None when they can."""
    if job.is_live:
        return "This video is still being made: cancel it, and its credits are given back."
    receipt = lifecycle.receipt(job)
    if receipt["refunded"]:
        return f"The {receipt['refunded']} credits of this video were refunded before."
    return None if receipt["captured"] else "This video was not charged, so there is nothing to refund."


# A running job taken from its node and given to another one, which begins it afresh.


logger = logging.getLogger(__name__)


@transaction.atomic
def move(
    *, actor: Actor, job: GenerationJob, target: GpuNode, reason: str, once: uuid.UUID | None = None
) -> JobAttempt:
    """End the open attempt and open one on `target`. It does not count towards JOB_MAX_ATTEMPTS.

    Raises:
        NotPermitted: the actor may not. Refused: the job does not run, or the node cannot take it now.
    """
    actor.must("generation.move_job")
    node = GpuNode.objects.select_for_update(no_key=True).get(pk=target.pk)
    old = (
        JobAttempt.objects.select_for_update(of=("self",))
        .filter(job=job, state=JobAttempt.State.OPEN)
        .first()
    )
    job.refresh_from_db()
    if why := why_not_move(job):
        raise Refused(why)
    if old is None or old.pk != job.current_attempt_id:
        raise Refused("This video has just ended, or went to another node.")
    if node.pk == old.node_id:
        raise Refused(f"It is being made on {node} already.")
    if why := scheduling.why_not_on(node, job):
        raise Refused(f"{node} {why}.")
    before, after = {"node": str(old.node)}, {"node": str(node)}
    audit_log.record(
        actor=actor, act="job.move", subject=job, reason=reason, before=before, after=after, once=once
    )
    closed = {
        "state": JobAttempt.State.CANCELED,
        "closed_at": Now(),
        "error": f"moved to {node} by staff: {reason}"[:500],
    }
    JobAttempt.objects.filter(pk=old.pk).update(**closed)
    attempt = scheduling.open_attempt(job, node)
    locks.drop(attempt_id=attempt.pk, token=attempt.pk)  # a reconciler hands it over, and follows it
    GenerationJob.objects.filter(pk=job.pk).update(current_attempt=attempt, started_at=Now(), step=0)
    events.publish(GenerationJob.objects.get(pk=job.pk))
    async_task("generation.staff.jobs.stop_on_node", str(old.pk))
    return attempt


def why_not_move(job: GenerationJob) -> str | None:
    """Why a job cannot be moved; None when it can."""
    if job.state == State.QUEUED:
        return "This video still waits: it goes to whichever node is free first."
    if job.state == State.STORING:
        return "This video is made already and being stored."
    return None if job.state == State.RUNNING else f"This video is {job.state} already."


def stop_on_node(attempt_id: str) -> None:
    """A task: tell the node that it need not go on. Where it cannot be told, what it makes is discarded."""
    attempt = JobAttempt.objects.select_related("node").filter(pk=attempt_id).first()
    if attempt is None or not attempt.remote_id:
        return
    try:
        async_to_sync(_stop)(attempt)
    except NodeError as error:
        logger.info(
            "attempt %s was moved and could not be stopped on %s: %s", attempt_id, attempt.node, error
        )


async def _stop(attempt: JobAttempt) -> None:
    async with open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.cancel(attempt.remote_id)


# What staff do to one job: cancel it, give its credits back.


@transaction.atomic
def retry(*, actor: Actor, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> GenerationJob:
    """Queue the same video again for the same person, free for them; it comes by the door that they asked at.

    Raises:
        NotPermitted: the actor may not. Refused: it did not fail, it was tried again before, or its owner is gone.
    """
    actor.must("generation.retry_job")
    wallet = ledger.lock_account(user=job.user)
    if why := why_not_retry(job):
        raise Refused(why)
    audit_log.record(actor=actor, act="job.retry", subject=job, reason=reason, once=once)
    again = submission.submit_again(job, wallet=wallet, idempotency_key=_key(job))
    job_retried.send(sender=GenerationJob, original=job, job=again)
    return again


def why_not_retry(job: GenerationJob) -> str | None:
    """Why a job cannot be made again; None when it can."""
    if job.state != State.FAILED:
        return f"This video is {job.state}: only what failed is made again."
    if job.deleted_at is not None or not job.user.is_active:
        return "Its owner has deleted it, or may not sign in."
    if GenerationJob.objects.filter(user=job.user, idempotency_key=_key(job)).exists():
        return "This video was made again before."
    return None


def _key(job: GenerationJob) -> str:
    """One retry of a job, whoever asks for it."""
    return f"staff-retry:{job.id.hex}"
