"""Answers to commands and to what is none."""

from collections.abc import Sequence

from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from telegram import BotCommand

from accounts.models import CreditTransaction
from accounts.templatetags.ledger import reason_words
from generation.errors import CooldownActive, DailyLimitReached, GenerationError, TooManyAtOnce, in_words
from generation.models import GenerationJob
from generation.pricing import Quote
from telegram_bot.texts.parts import (
    PROMPT_UNITS,
    credits_of,
    escaped,
    example,
    nothing_deducted,
    prompt_line,
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
    return "\n".join(
        [
            greeting,
            _("Describe a scene, and you get a video of it here."),
            "",
            free_credits(balance),
            "",
            _("Try this:"),
            sample(),
            "",
            _("/help shows all commands."),
        ]
    )


def sample() -> str:
    """Something to tap and send."""
    return f"<code>/video {example()}</code>"


def command_list(quote: Quote, menu: Sequence[BotCommand]) -> str:
    """`menu` is what there is besides /video."""
    facts = {"cost": credits_of(quote.cost), "seconds": quote.expected_seconds}
    return "\n".join(
        [
            _("🤖 <b>Commands</b>"),
            "",
            _("/video &lt;prompt&gt; - Generate AI video (%(cost)s, ~%(seconds)ds)") % facts,
            *(f"/{entry.command} - {escaped(entry.description)}" for entry in menu),
            "",
            _(
                "In a private chat your message is the prompt. Reply “again” to a video for another one like it."
            ),
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
            _("⏱ Duration: ~%(seconds)s") % {"seconds": in_words(quote.expected_seconds)},
        ]
    )


def free_credits(number: int) -> str:
    return _("💰 Balance: %(credits)s") % {"credits": credits_of(number)}


def balance(*, free: int, held: int, entries: list[CreditTransaction]) -> str:
    """The wallet, and how it came to that: `entries`, newest first."""
    lines = [free_credits(free)]
    if held:
        lines.append(_("%(credits)s held for videos being made") % {"credits": credits_of(held)})
    if entries:
        lines += ["", *(_entry(entry) for entry in entries)]
    return "\n".join(lines)


def _entry(entry: CreditTransaction) -> str:
    when, change = date_format(entry.created_at, "j E, H:i"), f"{entry.amount:+d}".replace("-", "−")
    return f"{when} UTC · {change} · {escaped(shortened(reason_words(entry.reason), LINE_UNITS))}"


def history(jobs: list[GenerationJob]) -> str:
    if not jobs:
        return "\n".join([_("You have no videos yet. Try this:"), sample()])
    heading = _("🎞 <b>Your last videos</b>")
    lines = [history_line(number, job) for number, job in enumerate(jobs, 1)]
    return "\n\n".join([heading, *lines])


def history_line(number: int, job: GenerationJob) -> str:
    """`number` is what the button says that brings the video again."""
    state = GenerationJob.State(job.state)
    line = f"{number}. {MARKS[state]} {escaped(shortened(job.prompt, LINE_UNITS))}\n{state_word(state)}"
    if state == GenerationJob.State.COMPLETED:
        return f"{line} · {credits_of(job.cost)} · {date_format(job.created_at, 'j E Y, H:i')} UTC"
    if state == GenerationJob.State.FAILED:
        return f"{line} · {escaped(_(job.error_message))}"
    if state == GenerationJob.State.RUNNING:
        return f"{line} · {step_of(job)}"
    return line


def state_word(state: GenerationJob.State) -> str:
    return {
        GenerationJob.State.QUEUED: pgettext("one video", "Queued"),
        GenerationJob.State.RUNNING: pgettext("one video", "Being made"),
        GenerationJob.State.STORING: pgettext("one video", "Almost done"),
        GenerationJob.State.COMPLETED: pgettext("one video", "Completed"),
        GenerationJob.State.FAILED: pgettext("one video", "Failed"),
        GenerationJob.State.CANCELED: pgettext("one video", "Canceled"),
    }[state]


def step_of(job: GenerationJob) -> str:
    return _("step %(step)d of %(steps)d") % {"step": job.step, "steps": job.num_inference_steps}


def canceled(prompt: str) -> str:
    return "\n".join([_("🚫 Video canceled"), prompt_line(prompt), nothing_deducted()])


def was_canceled() -> str:
    """Plain text."""
    return _("Canceled. No credits were deducted.")


def nothing_to_cancel() -> str:
    return _("There is nothing to cancel: no video of yours is being made.")


def refusal(error: GenerationError) -> str:
    """Plain text, as it may be shown over the chat too."""
    mark = "⏳" if isinstance(error, CooldownActive | DailyLimitReached | TooManyAtOnce) else "❌"
    return f"{mark} {error.message}"


def unknown_button() -> str:
    return _("This button does not work any more. /help shows what does.")


def not_yours() -> str:
    """Plain text."""
    return _("This video is not yours, or it was deleted.")


def retried_before() -> str:
    """Plain text."""
    return _("You tried this one again already: see below.")


def changed_prompt(prompt: str, *, mention: str) -> str:
    """`mention` is HTML, and empty in private."""
    asked = _("✏️ Send the changed prompt as a reply to this message. It was:")
    return (
        f"{mention + ': ' if mention else ''}{asked}\n<code>{escaped(shortened(prompt, PROMPT_UNITS))}</code>"
    )


def shared(prompt: str, *, address: str) -> str:
    heading = _("🔗 Whoever has this link can watch the video:")
    return f"{heading}\n{escaped(address)}\n\n{prompt_line(prompt)}"


def not_shared(prompt: str) -> str:
    return "\n".join([_("🔗 The link does not work any more."), prompt_line(prompt)])


def on_its_way() -> str:
    """Plain text."""
    return _("The video is on its way.")


def trouble() -> str:
    return _("⚠️ Something went wrong here, and we were told. Please try again in a moment.")
