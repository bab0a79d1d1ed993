"""The message that is the job: its status while it is made, and what became of it."""

from django.contrib.humanize.templatetags.humanize import ordinal
from django.utils.translation import gettext as _

from generation.cards import Card
from generation.errors import in_words
from generation.models import GenerationJob
from telegram_bot.texts.answers import step_of
from telegram_bot.texts.parts import about_seconds, escaped, nothing_deducted, prompt_line

BAR_CELLS = 10


def generating(card: Card, *, expected_seconds: int) -> str:
    """What the status message says of a live job; `expected_seconds` is what a clip of its preset takes."""
    wait = _("⏱ This takes ~%(seconds)s. Please wait...") % {"seconds": in_words(expected_seconds)}
    lines = [_("🎬 Generating video..."), prompt_line(card.job.prompt), wait]
    if stage := _stage(card):
        lines += ["", stage]
    return "\n".join(lines)


def _stage(card: Card) -> str:
    job = card.job
    if job.state == GenerationJob.State.QUEUED:
        return _place(card)
    if job.state == GenerationJob.State.RUNNING and job.step:
        return _and_left(f"{_bar(job.step, job.num_inference_steps)} {step_of(job)}", card)
    if job.state == GenerationJob.State.STORING:
        return " ".join([_bar(1, 1), _("almost done")])
    return ""


def _place(card: Card) -> str:
    if card.position is not None and card.position > 1:
        return _and_left(_("⏳ %(place)s in line") % {"place": ordinal(card.position)}, card)
    return _("⏳ Waiting for a GPU to be free") if card.waits_for_node else ""


def _and_left(stage: str, card: Card) -> str:
    return stage if card.seconds_left is None else f"{stage} · {about_seconds(card.seconds_left)}"


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
    return "\n".join([words, "", _("It could not be sent as a file. Watch it here:"), escaped(url)])


def failed(job: GenerationJob) -> str:
    reason = _(job.error_message)
    error = _("Error: %(reason)s") % {"reason": escaped(reason)}
    lines = [_("❌ Video generation failed"), prompt_line(job.prompt), error]
    if nothing_deducted() not in reason:  # some messages say it themselves
        lines.append(nothing_deducted())
    return "\n".join(lines)
