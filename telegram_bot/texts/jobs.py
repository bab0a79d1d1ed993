"""The message that is the job: its status while it is made, and what became of it."""

from django.contrib.humanize.templatetags.humanize import ordinal
from django.utils.translation import gettext as _

from generation.models import GenerationJob
from telegram_bot.texts.answers import step_of
from telegram_bot.texts.parts import escaped, nothing_deducted, prompt_line, seconds_of

BAR_CELLS = 10


def generating(job: GenerationJob, *, expected_seconds: int, position: int | None = None) -> str:
    """`position` in line counts only while the job is queued; 1 is next."""
    wait = _("⏱ This takes ~%(seconds)s. Please wait...") % {"seconds": seconds_of(expected_seconds)}
    lines = [_("🎬 Generating video..."), prompt_line(job.prompt), wait]
    if stage := _stage(job, position):
        lines += ["", stage]
    return "\n".join(lines)


def _stage(job: GenerationJob, position: int | None) -> str:
    if job.state == GenerationJob.State.QUEUED and position is not None and position > 1:
        return _("⏳ %(place)s in line") % {"place": ordinal(position)}
    if job.state == GenerationJob.State.RUNNING and job.step:
        return f"{_bar(job.step, job.num_inference_steps)} {step_of(job)}"
    if job.state == GenerationJob.State.STORING:
        return f"{_bar(1, 1)} {_('almost done')}"
    return ""


def _bar(done: int, total: int) -> str:
    filled = min(BAR_CELLS, BAR_CELLS * done // max(1, total))
    return "▓" * filled + "░" * (BAR_CELLS - filled)


def _facts(job: GenerationJob, balance_left: int) -> list[str]:
    seconds = job.generation_ms / 1000 if job.generation_ms is not None else job.elapsed_seconds or 0.0
    return [
        prompt_line(job.prompt),
        _("Time: %(seconds).1fs") % {"seconds": seconds},
        _("Credits remaining: %(credits)d") % {"credits": balance_left},
    ]


def caption(job: GenerationJob, *, balance_left: int) -> str:
    return "\n".join([_("✅ Video generated!"), *_facts(job, balance_left)])


def link_instead(job: GenerationJob, *, balance_left: int, url: str) -> str:
    words = caption(job, balance_left=balance_left)
    return f"{words}\n\n{_('It could not be sent as a file. Watch it here:')}\n{url}"


def failed(job: GenerationJob) -> str:
    reason = _(job.error_message)
    error = _("Error: %(reason)s") % {"reason": escaped(reason)}
    lines = [_("❌ Video generation failed"), prompt_line(job.prompt), error]
    if nothing_deducted() not in reason:  # some messages say it themselves
        lines.append(nothing_deducted())
    return "\n".join(lines)
