"""Messages about jobs: replies to commands, the status while a video is made, and its result, with their buttons."""

from collections.abc import Sequence

from django.contrib.humanize.templatetags.humanize import ordinal
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from telegram import BotCommand, InlineKeyboardMarkup

from accounts.models import CreditTransaction
from accounts.templatetags.accounts import reason_words
from generation.errors import CooldownActive, DailyLimitReached, GenerationError, TooManyAtOnce, in_words
from generation.jobs.catalog import Quote
from generation.models import GenerationJob
from generation.web.presenters import Card
from telegram_bot.texts.buttons import button, row
from telegram_bot.texts.parts import (
    PROMPT_UNITS,
    about_seconds,
    credits_of,
    escaped,
    example,
    nothing_deducted,
    prompt_line,
    shortened,
)

State = GenerationJob.State
LINE_UNITS = 60
BAR_CELLS = 10
MARKS = {
    State.QUEUED: "⏳",
    State.RUNNING: "🎬",
    State.STORING: "🎬",
    State.COMPLETED: "✅",
    State.FAILED: "❌",
    State.CANCELED: "🚫",
}

# --- Buttons --------------------------------------------------------------------------------------------------------


def of_job(job: GenerationJob) -> InlineKeyboardMarkup | None:
    """The actions on a job in its state of now; None when there is none."""
    match job.state:
        case State.QUEUED | State.RUNNING:
            return row((_("✖️ Cancel"), "cancel"), argument=job.id.hex)
        case State.COMPLETED:
            actions = (_("🔁 Again"), "again"), (_("✏️ Remix"), "remix"), (_("🔗 Share"), "share")
            return row(*actions, argument=job.id.hex)
        case State.FAILED:
            return row((_("🔁 Retry"), "retry"), argument=job.id.hex)
        case State.CANCELED:
            return row((_("🔁 Again"), "again"), argument=job.id.hex)
    return None


def of_history(jobs: list[GenerationJob]) -> InlineKeyboardMarkup | None:
    """A button for each video that can be sent again, by its number in the list."""
    done = [
        button(f"▶️ {number}", "resend", job.id.hex)
        for number, job in enumerate(jobs, 1)
        if job.state == State.COMPLETED
    ]
    return InlineKeyboardMarkup.from_row(done) if done else None


def of_sample(*, cost: int) -> InlineKeyboardMarkup:
    """Makes the example, at its price."""
    return row((_("🎬 Make it · %(credits)s") % {"credits": credits_of(cost)}, "sample"))


# --- Replies to commands --------------------------------------------------------------------------------------------


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
    """A command to tap and send."""
    return f"<code>/video {example()}</code>"


def command_list(quote: Quote, menu: Sequence[BotCommand]) -> str:
    """`menu` lists the commands besides /video."""
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
    """`number` is also on the button that sends the video again."""
    state = State(job.state)
    line = f"{number}. {MARKS[state]} {escaped(shortened(job.prompt, LINE_UNITS))}\n{state_word(state)}"
    if state == State.COMPLETED:
        return f"{line} · {credits_of(job.cost)} · {date_format(job.created_at, 'j E Y, H:i')} UTC"
    if state == State.FAILED:
        return f"{line} · {escaped(_(job.error_message))}"
    if state == State.RUNNING:
        return f"{line} · {step_of(job)}"
    return line


def state_word(state: State) -> str:
    return {
        State.QUEUED: pgettext("one video", "Queued"),
        State.RUNNING: pgettext("one video", "Being made"),
        State.STORING: pgettext("one video", "Almost done"),
        State.COMPLETED: pgettext("one video", "Completed"),
        State.FAILED: pgettext("one video", "Failed"),
        State.CANCELED: pgettext("one video", "Canceled"),
    }[state]


def step_of(job: GenerationJob) -> str:
    return _("step %(step)d of %(steps)d") % {"step": job.step, "steps": job.num_inference_steps}


def canceled(prompt: str) -> str:
    return "\n".join([_("🚫 Video canceled"), prompt_line(prompt), nothing_deducted()])


def refusal(error: GenerationError) -> str:
    """Plain text, as it may be shown over the chat too."""
    mark = "⏳" if isinstance(error, CooldownActive | DailyLimitReached | TooManyAtOnce) else "❌"
    return f"{mark} {error.message}"


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


# --- The message that is the job -----------------------------------------------------------------------------------


def generating(card: Card, *, expected_seconds: int) -> str:
    """The status message of a live job; `expected_seconds` is how long a clip of its preset takes."""
    wait = _("⏱ This takes ~%(seconds)s. Please wait...") % {"seconds": in_words(expected_seconds)}
    lines = [_("🎬 Generating video..."), prompt_line(card.job.prompt), wait]
    if stage := _stage(card):
        lines += ["", stage]
    return "\n".join(lines)


def _stage(card: Card) -> str:
    job = card.job
    if job.state == State.QUEUED:
        return _place(card)
    if job.state == State.RUNNING and job.step:
        return _and_left(f"{_bar(job.step, job.num_inference_steps)} {step_of(job)}", card)
    if job.state == State.STORING:
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
