"""The tables of what is sent: job results and notices to deliver, and which message is about which job.

ORM code without python-telegram-bot: other processes write notices. The bot's process calls it through `in_database`.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now

from generation.models import GenerationJob
from telegram_bot import wakeup
from telegram_bot.links import our_bot
from telegram_bot.models import ChatNotice, JobMessage, MessageRef, TelegramAccount

if TYPE_CHECKING:
    from telegram import InlineKeyboardMarkup

KEEP_NOTICES = timedelta(days=7)


@transaction.atomic
def tell(*, chat_id: int, text: str, markup: "InlineKeyboardMarkup | None" = None) -> None:
    """Have the bot send a text in Telegram's HTML when the current transaction commits."""
    keyboard = markup.to_dict()["inline_keyboard"] if markup else []
    bot_id = our_bot()
    if bot_id is None:
        return
    ChatNotice.objects.create(bot_id=bot_id, chat_id=chat_id, text=text, keyboard=keyboard)
    wakeup.call(wakeup.OUTBOX)


def prune() -> int:
    """Delete notices that were sent and are a week old; what could not be sent waits for the person."""
    old = ChatNotice.objects.filter(created_at__lt=Now() - KEEP_NOTICES, state=ChatNotice.State.SENT)
    return old.delete()[0]


@dataclass(frozen=True)
class Sent:
    """A result that was sent; `in_status` when the status message shows it now and so has to stay."""

    message_id: int
    file_id: str = ""
    in_status: bool = False


def load(row_id: int) -> JobMessage:
    """Read a row with all that is needed to send it."""
    related = ("job__user__credit_account", "job__user__telegram_account")
    return JobMessage.objects.select_related(*related).get(pk=row_id)


def update(row: JobMessage | ChatNotice, **values: object) -> None:
    type(row)._default_manager.filter(pk=row.pk).update(**values)


@transaction.atomic
def update_each(rows: "QuerySet[JobMessage]", **values: object) -> int:
    """Change several rows, locked in the order of their keys first; returns how many."""
    locked = list(
        rows.order_by("pk").select_for_update(no_key=True, of=("self",)).values_list("pk", flat=True)
    )
    return JobMessage.objects.filter(pk__in=locked).update(**values)


@transaction.atomic
def mark_sent(row: JobMessage, sent: Sent, *, error: str = "") -> int | None:
    """Settle a row whose result is sent. Returns the status message that is still to be removed.

    `error` says why it was sent in another way than as a message of its own.
    """
    rows = JobMessage.objects.filter(pk=row.pk)
    values = {"status_message_id": None} if sent.in_status else {}
    rows.update(
        state=JobMessage.State.SENT,
        sent_at=Now(),
        file_id=sent.file_id,
        error=error[:500],
        attempts=0,
        **values,
    )
    remember(job=row.job, bot_id=row.bot_id, chat_id=row.chat_id, message_id=sent.message_id)
    status = rows.values_list("status_message_id", flat=True).get()
    rows.update(next_attempt_at=None if status is None else Now())
    return status


@transaction.atomic
def mark_failed(row: JobMessage | ChatNotice, *, error: str, blocked: bool = False) -> None:
    due = {"next_attempt_at": None} if isinstance(row, JobMessage) else {}
    update(row, state=row.State.FAILED, error=error[:500], **due)
    if blocked:
        # A private chat has the id of the person.
        TelegramAccount.objects.filter(telegram_id=row.chat_id, blocked_at=None).update(blocked_at=Now())


@transaction.atomic
def send_what_waits(
    account: TelegramAccount, *, bot_id: int, chat_id: int, thread_id: int | None, in_private: bool
) -> None:
    """Make due again what could not be sent to a person who writes now: here, if it was asked for here or in private.

    In a group they are sent only what they asked for in that group.
    """
    failed = JobMessage.State.FAILED
    results = JobMessage.objects.filter(
        bot_id=bot_id, state=failed, job__user=account.user_id, job__deleted_at=None
    )
    if not in_private:
        results = results.filter(chat_id=chat_id)
    again = {"state": JobMessage.State.PENDING, "attempts": 0, "next_attempt_at": Now()}
    due = 0
    if ids := list(results.values_list("pk", flat=True)):
        # From another chat, their status messages are out of reach.
        results.exclude(chat_id=chat_id).update(chat_id=chat_id, reply_to=None, status_message_id=None)
        results.exclude(thread_id=thread_id).update(thread_id=thread_id, reply_to=None)
        due = JobMessage.objects.filter(pk__in=ids, state=failed).update(**again)
    if in_private:
        notices = ChatNotice.objects.filter(bot_id=bot_id, chat_id=account.telegram_id, state=failed)
        due += notices.update(**again, handed_over_at=None)
    if due:
        wakeup.call(wakeup.OUTBOX)


def remember(
    *, job: GenerationJob, bot_id: int, chat_id: int, message_id: int, asks_for_prompt: bool = False
) -> None:
    """Store which job a message is about, so that a reply to it is understood."""
    MessageRef.objects.get_or_create(
        bot_id=bot_id,
        chat_id=chat_id,
        message_id=message_id,
        defaults={"job": job, "asks_for_prompt": asks_for_prompt},
    )


def find(*, bot_id: int, chat_id: int, message_id: int) -> MessageRef | None:
    """Find the job that a message is about: one of the bot's, or the one by which a video was asked for."""
    post = MessageRef.objects.filter(bot_id=bot_id, chat_id=chat_id, message_id=message_id)
    if found := post.filter(job__deleted_at=None).select_related("job__preset").first():
        return found
    return last_in(bot_id=bot_id, chat_id=chat_id, reply_to=message_id)


def last_in(*, bot_id: int, chat_id: int, **asked: int | None) -> MessageRef | None:
    """Find the newest job that was asked for in a chat; `asked` narrows it down to fields of JobMessage."""
    rows = JobMessage.objects.filter(bot_id=bot_id, chat_id=chat_id, job__deleted_at=None, **asked)
    row = rows.select_related("job__preset").order_by("-id").first()
    return MessageRef(job=row.job, bot_id=bot_id, chat_id=chat_id, message_id=0) if row else None
