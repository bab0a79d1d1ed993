"""The buttons below the bot's messages, and what each carries. `routes.button` says who handles a press."""

from django.utils.translation import gettext as _
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from generation.models import GenerationJob
from telegram_bot.texts.parts import credits_of

State = GenerationJob.State
# What Telegram lets a button carry, in bytes.
MAX_DATA = 64


def data(name: str, argument: str = "") -> str:
    """What a button carries, for `@button(name)`.

    Raises:
        ValueError: more than Telegram lets a button carry.
    """
    carried = f"{name}:{argument}"
    if len(carried.encode()) > MAX_DATA:
        raise ValueError(f"a button cannot carry {carried!r}")
    return carried


def of_job(job: GenerationJob) -> InlineKeyboardMarkup | None:
    """What may be done about a job as it is now; None for nothing."""
    match job.state:
        case State.QUEUED | State.RUNNING:
            return row(about(job, "cancel", _("✖️ Cancel")))
        case State.COMPLETED:
            return row(
                about(job, "again", _("🔁 Again")),
                about(job, "remix", _("✏️ Remix")),
                about(job, "share", _("🔗 Share")),
            )
        case State.FAILED:
            return row(about(job, "retry", _("🔁 Retry")))
        case State.CANCELED:
            return row(about(job, "again", _("🔁 Again")))
    return None


def of_history(jobs: list[GenerationJob]) -> InlineKeyboardMarkup | None:
    """A button for each video that can be had again, by its number in the list."""
    done = [
        about(job, "resend", f"▶️ {number}")
        for number, job in enumerate(jobs, 1)
        if job.state == State.COMPLETED
    ]
    return row(*done) if done else None


def of_sample(*, cost: int) -> InlineKeyboardMarkup:
    """Makes the example, at its price."""
    label = _("🎬 Make it · %(credits)s") % {"credits": credits_of(cost)}
    return row(InlineKeyboardButton(label, callback_data=data("sample")))


def of_share(job: GenerationJob) -> InlineKeyboardMarkup:
    return row(about(job, "unshare", _("Stop sharing")))


def about(job: GenerationJob, name: str, label: str) -> InlineKeyboardButton:
    """A button that carries the job."""
    return InlineKeyboardButton(label, callback_data=data(name, job.id.hex))


def row(*buttons: InlineKeyboardButton) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup.from_row(buttons)
