"""Messages about jobs: replies to commands, the status while a video is made, and its result, with their buttons."""

from collections.abc import Sequence

from django.contrib.humanize.templatetags.humanize import ordinal
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from telegram import BotCommand, CopyTextButton, InlineKeyboardButton, InlineKeyboardMarkup

from accounts.ledger import HistoryLine
from accounts.templatetags.accounts import translated_reason
from generation import errors
from generation.errors import CooldownActive, DailyLimitReached, GenerationError, TooManyAtOnce, in_words
from generation.jobs.catalog import Quote
from generation.models import GenerationJob
from generation.web.presenters import Card
from telegram_bot.texts.parts import (
    PROMPT_UNITS,
    about_seconds,
    balance_of,
    button,
    credits_of,
    escaped,
    leading_to,
    lines,
    local_time,
    paragraphs,
    prompt_line,
    row,
    shortened,
)

State = GenerationJob.State
LINE_UNITS = 60
BAR_CELLS = 10


def of_job(job: GenerationJob) -> InlineKeyboardMarkup | None:
    """Offer the actions on a job in its state of now; None when there is none."""
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
    """Make a button for each video that can be sent again, by its number in the list."""
    done = [
        button(f"▶️ {number}", "resend", job.id.hex)
        for number, job in enumerate(jobs, 1)
        if job.state == State.COMPLETED
    ]
    return InlineKeyboardMarkup.from_row(done) if done else None


def welcome(*, name: str, balance: int, example: str) -> str:
    greeting = _("👋 Welcome, %(name)s!") % {"name": escaped(name)} if name else _("👋 Welcome!")
    return paragraphs(
        lines(greeting, _("Describe a scene, and you get a video of it here.")),
        balance_of(balance),
        lines(_("Try this:"), sample(example)),
        _("/help shows all commands."),
    )


def sample(example: str) -> str:
    """Give a command to tap and send."""
    return f"<code>/video {escaped(example)}</code>"


def command_list(quote: Quote, menu: Sequence[BotCommand]) -> str:
    """`menu` lists the commands besides /video."""
    facts = {"cost": credits_of(quote.cost), "seconds": quote.expected_seconds}
    return paragraphs(
        _("🤖 <b>Commands</b>"),
        lines(
            _("/video &lt;prompt&gt; - Generate AI video (%(cost)s, ~%(seconds)ds)") % facts,
            *(f"/{entry.command} - {escaped(entry.description)}" for entry in menu),
        ),
        _("In a private chat your message is the prompt. Reply “again” to a video for another one like it."),
    )


def video_usage(quote: Quote, *, example: str) -> str:
    return paragraphs(
        _("🎬 <b>Video Generation</b>"),
        lines(
            _("Usage: <code>/video &lt;your prompt&gt;</code>"),
            _("Example: <code>/video %(example)s</code>") % {"example": escaped(example)},
        ),
        lines(
            _("💰 Cost: %(credits)s") % {"credits": credits_of(quote.cost)},
            _("⏱ Duration: ~%(seconds)s") % {"seconds": in_words(quote.expected_seconds)},
        ),
    )


def balance(*, free: int, held: int, latest: list[HistoryLine]) -> str:
    """Show the wallet and its `latest` lines, newest first."""
    wallet = balance_of(free)
    if held:
        wallet += "\n" + _("%(credits)s held for videos being made") % {"credits": credits_of(held)}
    return paragraphs(wallet, lines(*map(_line, latest))) if latest else wallet


def _line(line: HistoryLine) -> str:
    moved = line.latest
    when = local_time(moved.created_at, f"{date_format(moved.created_at, 'j E, H:i')} UTC")
    change = f"{line.amount:+d}".replace("-", "−") if line.amount else "0"
    return f"{when} · {change} · {escaped(shortened(translated_reason(moved.reason), LINE_UNITS))}"


def history(jobs: list[GenerationJob], *, example: str) -> str:
    if not jobs:
        return lines(_("You have no videos yet. Try this:"), sample(example))
    return paragraphs(_("🎞 <b>Your last videos</b>"), *(_numbered(*each) for each in enumerate(jobs, 1)))


def _numbered(number: int, job: GenerationJob) -> str:
    """`number` is also on the button that sends the video again."""
    state = State(job.state)
    mark, word = {
        State.QUEUED: ("⏳", pgettext("one video", "Queued")),
        State.RUNNING: ("🎬", pgettext("one video", "Being made")),
        State.STORING: ("🎬", pgettext("one video", "Almost done")),
        State.COMPLETED: ("✅", pgettext("one video", "Completed")),
        State.FAILED: ("❌", pgettext("one video", "Failed")),
        State.CANCELED: ("🚫", pgettext("one video", "Canceled")),
    }[state]
    line = f"{number}. {mark} {escaped(shortened(job.prompt, LINE_UNITS))}\n{word}"
    if state == State.COMPLETED:
        when = local_time(job.created_at, f"{date_format(job.created_at, 'j E Y, H:i')} UTC")
        return f"{line} · {credits_of(job.cost)} · {when}"
    if state == State.FAILED:
        return f"{line} · {escaped(_(job.error_message))}"
    if state == State.RUNNING:
        return f"{line} · {step_of(job)}"
    return line


def step_of(job: GenerationJob) -> str:
    return _("step %(step)d of %(steps)d") % {"step": job.step, "steps": job.num_inference_steps}


def refusal(error: GenerationError) -> str:
    """Say a refusal in plain text, as it may be shown over the chat too."""
    mark = "⏳" if isinstance(error, CooldownActive | DailyLimitReached | TooManyAtOnce) else "❌"
    return f"{mark} {error.message}"


def changed_prompt(prompt: str, *, mention: str) -> str:
    """`mention` is HTML, and empty in private."""
    asked = _("✏️ Send the changed prompt as a reply to this message. It was:")
    return lines(
        f"{mention}: {asked}" if mention else asked,
        f"<code>{escaped(shortened(prompt, PROMPT_UNITS))}</code>",
    )


def shared(
    prompt: str, *, address: str, below: InlineKeyboardMarkup
) -> tuple[str, InlineKeyboardMarkup | None]:
    """Lead to the shared video by a button, which stays when the message is passed on, and by one that copies."""
    text = lines(_("🔗 Anyone who has the link can watch the video."), prompt_line(prompt))
    copy = InlineKeyboardButton(_("📋 Copy the link"), copy_text=CopyTextButton(address))
    rows = InlineKeyboardMarkup([[copy], *below.inline_keyboard])
    return leading_to(text, _("▶️ Watch the video"), address, below=rows)


# --- The message that is the job ------------------------------------------------------------------------------------


def generating(card: Card, *, expected_seconds: int) -> str:
    """Show the status of a live job; `expected_seconds` is how long a clip of its preset takes."""
    wait = _("⏱ This takes ~%(seconds)s. Please wait...") % {"seconds": in_words(expected_seconds)}
    text = lines(_("🎬 Generating video..."), prompt_line(card.job.prompt), wait)
    return paragraphs(*filter(None, [text, _stage(card), errors.cancel_terms()]))


def _stage(card: Card) -> str:
    job = card.job
    if job.state == State.STORING:
        return f"{_bar(1, 1)} {_('almost done')}"
    if card.is_silent:
        return _("⚠️ The GPU does not answer; moving it unless it comes back")
    if card.is_decoding:
        stage = f"{_bar(card.percent, 100)} {_('decoding the frames')}"
    elif job.state == State.RUNNING and job.step:
        stage = f"{_bar(job.step, job.num_inference_steps)} {step_of(job)}"
    elif job.state == State.QUEUED and card.position is not None and card.position > 1:
        stage = _("⏳ %(place)s in line") % {"place": ordinal(card.position)}
    elif job.state == State.QUEUED and card.waits_for_node:
        return _("⏳ Waiting for a GPU to be free")
    else:
        return ""
    return stage if card.seconds_left is None else f"{stage} · {about_seconds(card.seconds_left)}"


def _bar(done: int, total: int) -> str:
    filled = min(BAR_CELLS, BAR_CELLS * done // max(1, total))
    return "▓" * filled + "░" * (BAR_CELLS - filled)


def caption(job: GenerationJob, *, balance_left: int) -> str:
    seconds = job.generation_ms / 1000 if job.generation_ms is not None else job.elapsed_seconds or 0.0
    return lines(
        _("✅ Video generated!"),
        prompt_line(job.prompt),
        _("Time: %(seconds).1fs") % {"seconds": seconds},
        _("Credits remaining: %(credits)d") % {"credits": balance_left},
    )


def link_instead(
    job: GenerationJob, *, balance_left: int, url: str
) -> tuple[str, InlineKeyboardMarkup | None]:
    text = paragraphs(
        caption(job, balance_left=balance_left), _("It could not be sent as a file. Watch it here:")
    )
    return leading_to(text, _("▶️ Watch the video"), url, below=of_job(job))


def ended(job: GenerationJob) -> str:
    """Say why there is no video."""
    if job.state == State.CANCELED:
        return canceled(job)
    reason = _(job.error_message)
    error = _("Error: %(reason)s") % {"reason": escaped(reason)}
    text = lines(_("❌ Video generation failed"), prompt_line(job.prompt), error)
    # Some reasons say it themselves.
    return text if errors.deducted() in reason else lines(text, errors.deducted())


def canceled(job: GenerationJob) -> str:
    return lines(_("🚫 Video canceled"), prompt_line(job.prompt), errors.deducted(job.cancel_fee))
