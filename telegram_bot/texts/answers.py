"""Answers to commands and to what is none."""

from django.utils.translation import gettext as _

from generation.errors import CooldownActive, GenerationError
from generation.models import GenerationJob
from generation.pricing import Quote
from telegram_bot.texts.parts import (
    credits_of,
    escaped,
    example,
    nothing_deducted,
    prompt_line,
    seconds_of,
    shortened,
)

LINE_UNITS = 60

MARKS = {
    GenerationJob.State.QUEUED: "⏳",
    GenerationJob.State.RUNNING: "🎬",
    GenerationJob.State.STORING: "🎬",
    GenerationJob.State.COMPLETED: "✅",
    GenerationJob.State.FAILED: "❌",
    GenerationJob.State.CANCELED: "🚫",
}


def welcome(*, name: str, balance: int) -> str:
    greeting = _("👋 Welcome, %(name)s!") % {"name": escaped(name)} if name else _("👋 Welcome!")
    return (
        f"{greeting}\n{_('Describe a scene, and you get a video of it here.')}\n\n"
        f"{free_credits(balance)}\n\n"
        f"{_('Try this:')}\n<code>/video {example()}</code>\n\n"
        f"{_('/help shows all commands.')}"
    )


def command_list(quote: Quote) -> str:
    facts = {"cost": credits_of(quote.cost), "seconds": quote.expected_seconds}
    return "\n".join(
        [
            _("🤖 <b>Commands</b>"),
            "",
            _("/video &lt;prompt&gt; - Generate AI video (%(cost)s, ~%(seconds)ds)") % facts,
            _("/balance - Show your credits"),
            _("/history - Show your last videos"),
            _("/cancel - Cancel the video being made"),
            _("/help - Show this list"),
        ]
    )


def video_usage(quote: Quote) -> str:
    return "\n".join(
        [
            _("🎬 <b>Video Generation</b>"),
            "",
            _("Usage: <code>/video &lt;your prompt&gt;</code>"),
            _("Example: <code>/video %(example)s</code>") % {"example": example()},
            "",
            _("💰 Cost: %(credits)s") % {"credits": credits_of(quote.cost)},
            _("⏱ Duration: ~%(seconds)s") % {"seconds": seconds_of(quote.expected_seconds)},
        ]
    )


def free_credits(number: int) -> str:
    return _("💰 Balance: %(credits)s") % {"credits": credits_of(number)}


def balance(*, free: int, held: int) -> str:
    lines = [free_credits(free)]
    if held:
        lines.append(_("%(credits)s held for videos being made") % {"credits": credits_of(held)})
    return "\n".join(lines)


def history(jobs: list[GenerationJob]) -> str:
    if not jobs:
        return f"{_('You have no videos yet. Try this:')}\n<code>/video {example()}</code>"
    heading = _("🎞 <b>Your last videos</b>")
    return f"{heading}\n\n" + "\n\n".join(history_line(job) for job in jobs)


def history_line(job: GenerationJob) -> str:
    state = GenerationJob.State(job.state)
    line = f"{MARKS[state]} {escaped(shortened(job.prompt, LINE_UNITS))}\n{_(state.label)}"
    if state == GenerationJob.State.COMPLETED:
        return f"{line} · {credits_of(job.cost)} · {job.created_at:%-d %b %Y, %H:%M} UTC"
    if state == GenerationJob.State.FAILED:
        return f"{line} · {escaped(_(job.error_message))}"
    if state == GenerationJob.State.RUNNING:
        return f"{line} · {step_of(job)}"
    return line


def step_of(job: GenerationJob) -> str:
    return _("step %(step)d of %(steps)d") % {"step": job.step, "steps": job.num_inference_steps}


def canceled(prompt: str) -> str:
    return f"{_('🚫 Video canceled')}\n{prompt_line(prompt)}\n{nothing_deducted()}"


def nothing_to_cancel() -> str:
    return _("There is nothing to cancel: no video of yours is being made.")


def refusal(error: GenerationError) -> str:
    """Plain text, as it may be shown over the chat too."""
    mark = "⏳" if isinstance(error, CooldownActive) else "❌"
    return f"{mark} {_(error.message)}"


def unknown_button() -> str:
    return _("This button does not work any more. /help shows what does.")


def trouble() -> str:
    return _("⚠️ Something went wrong here, and we were told. Please try again in a moment.")
