"""What staff do to one job: cancel it, give its credits back."""

import uuid

from django.db import transaction
from django.db.models import Exists, OuterRef

from accounts import notices
from accounts.models import CreditTransaction, Notice
from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from generation import lifecycle
from generation.errors import BeingStored, GenerationError
from generation.models import GenerationJob
from generation.staff.refund_limit import hold

State = GenerationJob.State


@transaction.atomic
def cancel(*, clerk: Clerk, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> GenerationJob:
    """Stop a queued or running job and give its credits back.

    Raises:
        NotPermitted: the clerk may not. Refused: it is being stored, or has ended.
    """
    clerk.must("generation.cancel_job")
    log.record(
        clerk=clerk,
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
        return lifecycle.cancel(job=job, actor=clerk.user, reason=reason)
    except GenerationError as error:
        raise Refused(error.message) from error


@transaction.atomic
def refund(*, clerk: Clerk, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> int:
    """Give back, once, what a completed job cost; returns the credits.

    Raises:
        NotPermitted: the clerk may not. Refused: it was not charged, it was refunded before, or it is more than the
        clerk may refund in a day.
    """
    clerk.must("generation.refund_job")
    hold(clerk, job.cost)
    job = lock(job)
    if why := why_not_refund(job):
        raise Refused(why)
    log.record(
        clerk=clerk,
        act="job.refund",
        subject=job,
        reason=reason,
        before={"refunded": 0},
        after={"refunded": job.cost},
        credits=job.cost,
        once=once,
    )
    lifecycle.refund(job=job, reason=reason, actor=clerk.user)
    notices.tell(user=job.user, kind=Notice.Kind.REFUND, videos=1, credits=job.cost, reason=reason)
    return job.cost


def refunded() -> Exists:
    """Whether a job's credits were given back: for queries of jobs."""
    refunds = CreditTransaction.objects.filter(kind=CreditTransaction.Kind.REFUND, reference=OuterRef("pk"))
    return Exists(refunds)


def lock(job: GenerationJob) -> GenerationJob:
    """As it is now, with its owner; until the transaction ends nobody else refunds it or hands it to another account.

    Wallets come after jobs (generation/locking.py), and which of them are moved the ledger knows.
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
