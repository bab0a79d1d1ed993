"""The outbox: a row for each job that was asked for in a chat, due from the transaction that ended the job on."""

import uuid
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from telegram import ReplyParameters

from accounts.models import CreditAccount
from generation.database import in_database
from generation.models import GenerationJob
from telegram_bot import language
from telegram_bot.models import JobMessage, JobPost
from telegram_bot.receiving import context


def remember(
    *, job: GenerationJob, bot_id: int, chat_id: int, message_id: int, asks_for_prompt: bool = False
) -> None:
    JobPost.objects.get_or_create(
        bot_id=bot_id,
        chat_id=chat_id,
        message_id=message_id,
        defaults={"job": job, "asks_for_prompt": asks_for_prompt},
    )


def find(*, bot_id: int, chat_id: int, message_id: int) -> JobPost | None:
    """What a message is about: one of the bot's, or the one by which somebody asked for a video."""
    post = JobPost.objects.filter(bot_id=bot_id, chat_id=chat_id, message_id=message_id)
    if found := post.filter(job__deleted_at=None).select_related("job__preset").first():
        return found
    return last_in(bot_id=bot_id, chat_id=chat_id, reply_to=message_id)


def last_in(*, bot_id: int, chat_id: int, **asked: int) -> JobPost | None:
    """The newest job that was asked for in a chat; `asked` narrows it down to fields of JobMessage."""
    rows = JobMessage.objects.filter(bot_id=bot_id, chat_id=chat_id, job__deleted_at=None, **asked)
    row = rows.select_related("job__preset").order_by("-id").first()
    return JobPost(job=row.job, bot_id=bot_id, chat_id=chat_id, message_id=0) if row else None


# Which of the bot's messages is about which job. ORM code: called from within `in_database`.


Delivery = JobMessage.State


@dataclass(frozen=True)
class Parcel:
    """A row that is due, with all that is needed to send it.

    balance: in credits. language: a code. age: since the job ended, None while it has not.
    """

    row: JobMessage
    job: GenerationJob
    balance: int
    language: str
    age: timedelta | None

    @property
    def reply(self) -> ReplyParameters | None:
        if self.row.reply_to is None:
            return None
        return ReplyParameters(self.row.reply_to, allow_sending_without_reply=True)


@dataclass(frozen=True)
class Sent:
    """What was sent; `in_status` when the status message shows it now and so has to stay."""

    message_id: int
    file_id: str = ""
    in_status: bool = False


@in_database
def due(bot_id: int, *, besides: set[int]) -> list[tuple[int, uuid.UUID]]:
    """Rows to be worked on now, oldest first: results to send, and status messages to remove after them."""
    open_ends = Q(state=Delivery.PENDING) | Q(state=Delivery.SENT, status_message_id__isnull=False)
    rows = JobMessage.objects.filter(open_ends, bot_id=bot_id, next_attempt_at__lte=Now())
    return list(rows.exclude(pk__in=besides).order_by("next_attempt_at").values_list("pk", "job_id"))


@in_database
def load(row_id: int) -> Parcel:
    rows = JobMessage.objects.select_related("job__user").annotate(age=Now() - F("job__finished_at"))
    row = rows.get(pk=row_id)
    balance = CreditAccount.objects.get(user=row.job.user_id).balance
    spoken = language.language_for(row.job.user)
    return Parcel(row=row, job=row.job, balance=balance, language=spoken, age=row.age)


@in_database
def begin_upload(row_id: int) -> None:
    """From here on the video may be in the chat, whatever becomes of this process."""
    JobMessage.objects.filter(pk=row_id).update(upload_began_at=Now())


@in_database
def forget_upload(row_id: int) -> None:
    """It surely did not arrive."""
    JobMessage.objects.filter(pk=row_id).update(upload_began_at=None)


@in_database
@transaction.atomic
def mark_sent(row: JobMessage, sent: Sent) -> int | None:
    """The result is out. Returns the status message that is still to be removed."""
    rows = JobMessage.objects.filter(pk=row.pk)
    values = {"status_message_id": None} if sent.in_status else {}
    rows.update(
        state=Delivery.SENT,
        sent_at=Now(),
        file_id=sent.file_id,
        error="",
        attempts=0,
        **values,
    )
    remember(job=row.job, bot_id=row.bot_id, chat_id=row.chat_id, message_id=sent.message_id)
    status = rows.values_list("status_message_id", flat=True).get()
    rows.update(next_attempt_at=None if status is None else Now())
    return status


@in_database
@transaction.atomic
def mark_failed(row: JobMessage, *, error: str, blocked: bool = False) -> None:
    """It can never be delivered."""
    JobMessage.objects.filter(pk=row.pk).update(
        state=Delivery.FAILED, error=error[:500], next_attempt_at=None
    )
    if blocked:
        context.mark_blocked(chat_id=row.chat_id)


@in_database
def try_later(row: JobMessage, *, error: str, seconds: float, counts: bool) -> None:
    JobMessage.objects.filter(pk=row.pk).update(
        attempts=row.attempts + counts,
        next_attempt_at=Now() + timedelta(seconds=seconds),
        error=error[:500],
    )


@in_database
def put_off(row_id: int, *, error: str, seconds: float) -> None:
    when = Now() + timedelta(seconds=seconds)
    JobMessage.objects.filter(pk=row_id).update(next_attempt_at=when, error=error[:500])


@in_database
def forget_status(row_id: int) -> None:
    """Nothing is left to do."""
    JobMessage.objects.filter(pk=row_id).update(status_message_id=None, next_attempt_at=None)


@in_database
def move_chat(row: JobMessage, chat_id: int) -> None:
    """The group became a supergroup; its old messages are out of reach."""
    JobMessage.objects.filter(chat_id=row.chat_id).update(
        chat_id=chat_id, status_message_id=None, reply_to=None
    )
