"""Reports of shared videos, from whoever saw them to what staff make of them; and videos that staff remove."""

import uuid

from django.db import transaction
from django.db.models.functions import Now

from accounts import notices
from accounts.models import Notice
from accounts.staff import audit_log
from accounts.staff.actor import Actor, Refused
from generation import sharing
from generation.jobs import lifecycle
from generation.models import GenerationJob, Report

PROMPT_SHOWN = 100


def report(*, job: GenerationJob, about: str, words: str, address: str) -> Report:
    """Write down what somebody has against a video. One address has one open report of it, the first."""
    values = {"about": about, "words": words[:1000]}
    return Report.objects.get_or_create(job=job, address=address, outcome="", defaults=values)[0]


@transaction.atomic
def remove(*, actor: Actor, job: GenerationJob, reason: str, once: uuid.UUID | None = None) -> None:
    """Take a video away from everybody, its owner included, who is told why. Its reports are settled by it.

    Raises:
        NotPermitted: the actor may not. Refused: it is being made, or nothing is there to remove.
    """
    actor.must("generation.remove_video")
    job = (
        GenerationJob.objects.select_for_update(no_key=True, of=("self",))
        .select_related("user")
        .get(pk=job.pk)
    )
    if why := why_not_remove(job):
        raise Refused(why)
    audit_log.record(actor=actor, act="job.remove_video", subject=job, reason=reason, once=once)
    sharing.revoke(job=job)
    lifecycle.delete(job=job)
    _settle(actor, job, Report.Outcome.REMOVED)
    prompt = job.prompt if len(job.prompt) <= PROMPT_SHOWN else job.prompt[: PROMPT_SHOWN - 1] + "…"
    notices.tell(user=job.user, kind=Notice.Kind.REMOVAL, prompt=prompt, reason=reason)


@transaction.atomic
def dismiss(*, actor: Actor, report: Report, reason: str, once: uuid.UUID | None = None) -> None:
    """The video stays; every open report of it is settled.

    Raises:
        NotPermitted: the actor may not. Refused: it was settled before.
    """
    actor.must("generation.remove_video")
    report = Report.objects.select_for_update(of=("self",)).select_related("job").get(pk=report.pk)
    if report.outcome:
        raise Refused("This report was settled before.")
    audit_log.record(actor=actor, act="report.dismiss", subject=report, reason=reason, once=once)
    _settle(actor, report.job, Report.Outcome.DISMISSED)


def why_not_remove(job: GenerationJob) -> str | None:
    """Why a video cannot be removed; None when it can."""
    if job.is_live:
        return "This video is still being made: cancel it instead."
    if job.deleted_at is not None:
        return "This video was removed before."
    return None if job.video else f"This video is {job.state}: there is no file."


def _settle(actor: Actor, job: GenerationJob, outcome: str) -> None:
    open_ones = Report.objects.filter(job=job, outcome="")
    open_ones.update(outcome=outcome, settled_at=Now(), settled_by=actor.user)
