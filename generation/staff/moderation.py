"""Reports of shared videos, and videos that staff remove."""

from django.db.models.functions import Now
from django.utils.text import Truncator

from accounts import notices
from accounts.models import Notice
from accounts.staff.actor import refuse
from accounts.staff.audit_log import Operation, operation
from generation import sharing
from generation.jobs import lifecycle
from generation.models import GenerationJob, Report
from generation.staff.jobs import lock

PROMPT_SHOWN = 100


def report(*, job: GenerationJob, about: str, words: str, address: str) -> Report:
    """Store a visitor's report of a video. One address has one open report of it, the first."""
    values = {"about": about, "words": words[:1000]}
    return Report.objects.get_or_create(job=job, address=address, outcome="", defaults=values)[0]


@operation("generation.remove_video", "job.remove_video")
def remove(op: Operation, job: GenerationJob) -> None:
    """Delete a video for all users, its owner included, notify the owner, and settle its reports.

    Raises:
        Refused: it is being made, or there is no file.
    """
    job = lock(job)
    refuse(why_not_remove(job))
    op.record(job)
    sharing.revoke(job=job)
    lifecycle.delete(job=job)
    _settle(op, job, Report.Outcome.REMOVED)
    prompt = Truncator(job.prompt).chars(PROMPT_SHOWN)
    notices.tell(user=job.user, kind=Notice.Kind.REMOVAL, prompt=prompt, reason=op.reason)


@operation("generation.remove_video", "report.dismiss")
def dismiss(op: Operation, report: Report) -> None:
    """Keep the video and settle every open report of it. Raises Refused when the report was settled before."""
    lock(report.job)  # each settles all reports of a video
    report = Report.objects.select_for_update(of=("self",)).select_related("job").get(pk=report.pk)
    refuse(why_not_dismiss(report))
    op.record(report)
    _settle(op, report.job, Report.Outcome.DISMISSED)


def why_not_remove(job: GenerationJob) -> str | None:
    """Explain why a video cannot be removed; None when it can."""
    if job.is_live:
        return "This video is still being made: cancel it instead."
    if job.deleted_at is not None:
        return "This video was removed before."
    return None if job.video else f"This video is {job.state}: there is no file."


def why_not_dismiss(report: Report) -> str | None:
    return "This report was settled before." if report.outcome else None


def _settle(op: Operation, job: GenerationJob, outcome: str) -> None:
    open_reports = Report.objects.filter(job=job, outcome="")
    open_reports.update(outcome=outcome, settled_at=Now(), settled_by=op.actor.user)
