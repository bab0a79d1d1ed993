"""A failed video made again, at the service's expense: nobody but staff asked for it this time."""

import uuid

from django.db import transaction

from accounts import ledger
from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from generation import events, nudges
from generation.models import GenerationJob
from generation.signals import job_retried

State = GenerationJob.State
# What the new job has of the old one.
COPIED = (
    "user",
    "prompt",
    "negative_prompt",
    "preset",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "model",
    "size",
)


@transaction.atomic
def retry(*, clerk: Clerk, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> GenerationJob:
    """Queue the same video again for the same person, free for them; it comes by the door that they asked at.

    Raises:
        NotPermitted: the clerk may not. Refused: it did not fail, it was tried again before, or its owner is gone.
    """
    clerk.must("generation.retry_job")
    ledger.lock_account(user=job.user)
    if why := why_not_retry(job):
        raise Refused(why)
    log.record(clerk=clerk, act="job.retry", subject=job, reason=reason, once=once)
    again = GenerationJob(
        **{name: getattr(job, name) for name in COPIED},
        source=GenerationJob.Source.STAFF,
        cost=0,
        idempotency_key=_key(job),
        remixed_from=job,
    )
    ledger.reserve(user=job.user, amount=0, reference=again.id, reason="Made again by staff")
    again.save(force_insert=True)
    again.refresh_from_db(fields=["deadline_at"])  # set by PostgreSQL's clock
    job_retried.send(sender=GenerationJob, original=job, job=again)
    events.publish(again)
    nudges.dispatch()
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
