"""The outbox: what became of a job reaches the person who asked for it, and nothing of that blocks generation.

A row is due from the transaction that ended its job on. Who blocked the bot is not tried again; where Telegram or the
network failed, it is, with growing pauses. A crash loses no message. It repeats one text at most (see `lane`), and no
video: one that may have arrived is put into the status message when it is tried again.
"""

import asyncio
import contextlib
import logging
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Q
from django.utils import timezone, translation
from telegram import InputMediaVideo, Message, ReplyParameters
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, TelegramError

from accounts.models import CreditAccount
from generation.database import DATABASE_AWAY, in_database
from generation.events import JobEvent, hub
from generation.models import GenerationJob
from telegram_bot import backoff, lane, links, people, speech
from telegram_bot.client import (
    MEDIA_SECONDS,
    BotClient,
    is_transient,
    is_unmodified,
    may_have_arrived,
    wait_asked_for,
)
from telegram_bot.crew import Crew
from telegram_bot.live import LiveStatus
from telegram_bot.marks import written
from telegram_bot.models import JobMessage
from telegram_bot.texts import answers
from telegram_bot.texts import jobs as words

logger = logging.getLogger(__name__)

State = GenerationJob.State
Delivery = JobMessage.State

SWEEP_SECONDS = 3.0
UPLOADS_AT_ONCE = 4
# Bots may upload 50 MB (core.telegram.org/bots/faq); measured in thousands here to stay on the safe side.
MAX_UPLOAD_BYTES = 50 * 1000 * 1000
# From this many failed uploads on, each further one that fails is followed by a link.
LINK_AFTER = 4
GIVE_UP_AFTER = timedelta(days=1)
LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class Parcel:
    """A row that is due, with all that is needed to send it. `balance` is in credits, `language` a code."""

    row: JobMessage
    job: GenerationJob
    balance: int
    language: str

    @property
    def reply(self) -> ReplyParameters | None:
        if self.row.reply_to is None:
            return None
        return ReplyParameters(self.row.reply_to, allow_sending_without_reply=True)


@dataclass(frozen=True)
class Sent:
    """What was sent; `in_status` when the status message shows it now and so has to stay."""

    file_id: str = ""
    in_status: bool = False


@dataclass(frozen=True)
class Clip:
    """A stored video as Telegram wants it: the file, or the id it had there; sizes in pixels."""

    file: bytes | str
    filename: str
    facts: dict[str, Any]

    @classmethod
    async def of(cls, parcel: Parcel) -> "Clip":
        job = parcel.job
        file: bytes | str = parcel.row.file_id
        if not file:
            file = await asyncio.to_thread(_read, job.video.name or "")
        facts = {
            "caption": words.caption(job, balance_left=parcel.balance),
            "width": job.width,
            "height": job.height,
            "duration": timedelta(milliseconds=job.duration_ms or 0),
            "supports_streaming": True,
        }
        return cls(file, f"{job.public_id}.mp4", facts)


# --- The table --------------------------------------------------------------------------------------------------------


@in_database
def due(bot_id: int, *, besides: set[int]) -> list[tuple[int, uuid.UUID]]:
    """Rows to be worked on now, oldest first: results to send, and status messages to remove after them."""
    open_ends = Q(state=Delivery.PENDING) | Q(state=Delivery.SENT, status_message_id__isnull=False)
    rows = JobMessage.objects.filter(open_ends, bot_id=bot_id, next_attempt_at__lte=timezone.now())
    return list(rows.exclude(pk__in=besides).order_by("next_attempt_at").values_list("pk", "job_id"))


@in_database
def load(row_id: int) -> Parcel:
    row = JobMessage.objects.select_related("job__user").get(pk=row_id)
    balance = CreditAccount.objects.get(user=row.job.user_id).balance
    return Parcel(row=row, job=row.job, balance=balance, language=speech.language_for(row.job.user))


@in_database
def begin_upload(row_id: int) -> None:
    """From here on the video may be in the chat, whatever becomes of this process."""
    JobMessage.objects.filter(pk=row_id).update(upload_began_at=timezone.now())


@in_database
def forget_upload(row_id: int) -> None:
    """It surely did not arrive."""
    JobMessage.objects.filter(pk=row_id).update(upload_began_at=None)


@in_database
def mark_sent(row_id: int, *, file_id: str, keep_status: bool) -> int | None:
    """The result is out. Returns the status message that is still to be removed."""
    now = timezone.now()
    row = JobMessage.objects.filter(pk=row_id)
    values = {"status_message_id": None} if keep_status else {}
    row.update(
        state=Delivery.SENT, sent_at=now, next_attempt_at=now, file_id=file_id, error="", attempts=0, **values
    )
    return row.values_list("status_message_id", flat=True).get()


@in_database
@transaction.atomic
def mark_failed(row: JobMessage, *, error: str, blocked: bool = False) -> None:
    """It can never be delivered."""
    JobMessage.objects.filter(pk=row.pk).update(
        state=Delivery.FAILED, error=error[:500], next_attempt_at=None
    )
    if blocked:
        people.mark_blocked(chat_id=row.chat_id)


@in_database
def try_later(row: JobMessage, *, error: str, seconds: float, counts: bool) -> None:
    JobMessage.objects.filter(pk=row.pk).update(
        attempts=row.attempts + counts,
        next_attempt_at=timezone.now() + timedelta(seconds=seconds),
        error=error[:500],
    )


@in_database
def put_off(row_id: int, *, error: str, seconds: float) -> None:
    when = timezone.now() + timedelta(seconds=seconds)
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


# --- Sending ----------------------------------------------------------------------------------------------------------


class Outbox:
    """Sends what became of jobs, several at a time."""

    def __init__(self, *, bot: BotClient, crew: Crew, live: LiveStatus) -> None:
        self._bot, self._crew, self._live = bot, crew, live
        self._active: set[int] = set()
        self._slots = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def run(self) -> None:
        """Send what is due, whenever a job ends and every few seconds."""
        with hub.subscribe() as events:
            while True:
                try:
                    for row_id, job_id in await due(self._bot.id, besides=self._active):
                        self._active.add(row_id)
                        self._crew.errand(self._work_on(row_id, job_id))
                except DATABASE_AWAY as error:
                    logger.warning("cannot look for deliveries now: %s", error)
                await _until_a_job_ends(events)

    async def _work_on(self, row_id: int, job_id: uuid.UUID) -> None:
        try:
            async with self._slots, self._live.lock(job_id):
                if self._crew.stopping:
                    return
                parcel = await load(row_id)
                if parcel.row.state == Delivery.PENDING:
                    with translation.override(parcel.language):
                        await self._deliver(parcel)
                elif parcel.row.status_message_id is not None:
                    await self._remove_status(parcel.row, parcel.row.status_message_id)
        except DATABASE_AWAY as error:
            logger.warning("delivery of job %s has to wait: %s", job_id.hex, error)
        except InvalidToken:
            raise
        except Exception as error:
            # One delivery that fails in a new way must not stop the others, nor be tried without a pause.
            logger.exception("delivery of job %s failed", job_id.hex)
            await put_off(row_id, error=repr(error), seconds=LONGEST_PAUSE)
        finally:
            self._active.discard(row_id)

    async def _deliver(self, parcel: Parcel) -> None:
        if parcel.job.deleted_at is not None:
            await self._drop(parcel)
            return
        try:
            async with lane.turn():
                status = await self._finish(parcel, await self._send(parcel))
        except InvalidToken:
            raise
        except ChatMigrated as error:
            await move_chat(parcel.row, error.new_chat_id)
        except Forbidden as error:
            await mark_failed(parcel.row, error=str(error), blocked=True)
            logger.info("job %s is not delivered: %s", parcel.job.id.hex, error)
        except (TelegramError, OSError) as error:
            await self._note(parcel, error)
        else:
            if status is not None:
                await self._remove_status(parcel.row, status)

    async def _drop(self, parcel: Parcel) -> None:
        """The owner deleted the video before it was sent: only the status message is left to remove."""
        if parcel.row.status_message_id is not None:
            await self._remove_status(parcel.row, parcel.row.status_message_id)
        await mark_failed(parcel.row, error="deleted by its owner")

    async def _note(self, parcel: Parcel, error: Exception) -> None:
        """A permanent error ends it, any other one is for another try."""
        permanent = isinstance(error, BadRequest)
        too_old = (
            parcel.job.finished_at is not None and timezone.now() - parcel.job.finished_at > GIVE_UP_AFTER
        )
        if permanent or too_old:
            await mark_failed(parcel.row, error=str(error))
            logger.warning("job %s cannot be delivered: %s", parcel.job.id.hex, error)
            return
        asked = wait_asked_for(error)
        pause = asked or backoff.delay(parcel.row.attempts + 1, longest=LONGEST_PAUSE)
        await try_later(parcel.row, error=str(error) or repr(error), seconds=pause, counts=asked is None)
        logger.warning("job %s is not delivered yet, again in %.0f s: %s", parcel.job.id.hex, pause, error)

    async def _finish(self, parcel: Parcel, sent: Sent) -> int | None:
        """The status message that is still to be removed."""
        mark = partial(mark_sent, parcel.row.pk, file_id=sent.file_id, keep_status=sent.in_status)
        status = await written(mark, about=f"the delivery of job {parcel.job.id.hex}")
        logger.info("job %s is delivered", parcel.job.id.hex)
        return status

    async def _remove_status(self, row: JobMessage, message_id: int) -> None:
        try:
            await self._bot.delete_message(row.chat_id, message_id)
        except InvalidToken:
            raise
        except TelegramError as error:
            if is_transient(error) and row.attempts < LINK_AFTER:
                pause = wait_asked_for(error) or backoff.delay(row.attempts + 1)
                await try_later(row, error=str(error), seconds=pause, counts=True)
                return
            logger.info("the status message %s cannot be removed: %s", message_id, error)
        await forget_status(row.pk)

    async def _send(self, parcel: Parcel) -> Sent:
        if parcel.job.state == State.COMPLETED:
            return await self._send_video(parcel)
        if parcel.job.state == State.CANCELED:
            return await self._show_cancel(parcel)
        return await self._say(parcel, words.failed(parcel.job))

    async def _send_video(self, parcel: Parcel) -> Sent:
        if (parcel.job.size_bytes or 0) > MAX_UPLOAD_BYTES:
            return await self._send_link(parcel)
        try:
            return await self._upload(parcel)
        except (InvalidToken, Forbidden, ChatMigrated):
            raise
        except (TelegramError, OSError) as error:
            refused = isinstance(error, TelegramError) and _is_refused(error)
            if not refused and parcel.row.attempts + 1 < LINK_AFTER:
                raise
            logger.warning("job %s cannot be uploaded, sending a link: %s", parcel.job.id.hex, error)
            return await self._send_link(parcel)

    async def _upload(self, parcel: Parcel) -> Sent:
        """As a message of its own; where an earlier one may have arrived, in place of the status message, which can be
        done any number of times and still shows one video."""
        await self._bot.send_chat_action(parcel.row.chat_id, ChatAction.UPLOAD_VIDEO)
        clip = await Clip.of(parcel)
        status = parcel.row.status_message_id
        if parcel.row.upload_began_at is not None and status is not None:
            try:
                return await self._put_into_status(parcel, clip, status)
            except BadRequest as error:
                logger.info("the status message %s cannot show the video: %s", status, error)
        await begin_upload(parcel.row.pk)
        try:
            message = await self._bot.send_video(
                parcel.row.chat_id,
                clip.file,
                filename=clip.filename,
                reply_parameters=parcel.reply,
                read_timeout=MEDIA_SECONDS,
                **clip.facts,
            )
        except TelegramError as error:
            if not may_have_arrived(error):
                await forget_upload(parcel.row.pk)
            raise
        return Sent(_file_id(message))

    async def _put_into_status(self, parcel: Parcel, clip: Clip, status: int) -> Sent:
        video = InputMediaVideo(clip.file, filename=clip.filename, **clip.facts)
        try:
            message = await self._bot.edit_message_media(
                video, chat_id=parcel.row.chat_id, message_id=status, read_timeout=MEDIA_SECONDS
            )
        except BadRequest as error:
            if not is_unmodified(error):
                raise
            return Sent(in_status=True)
        return Sent(_file_id(message if isinstance(message, Message) else None), in_status=True)

    async def _send_link(self, parcel: Parcel) -> Sent:
        url = links.video_page(parcel.job)
        return await self._say(parcel, words.link_instead(parcel.job, balance_left=parcel.balance, url=url))

    async def _show_cancel(self, parcel: Parcel) -> Sent:
        """In the status message, without a sound: whoever canceled it knows."""
        text, status = answers.canceled(parcel.job.prompt), parcel.row.status_message_id
        if status is None:
            return await self._say(parcel, text)
        try:
            await self._bot.edit_message_text(text, chat_id=parcel.row.chat_id, message_id=status)
        except BadRequest as error:
            if not is_unmodified(error):
                return await self._say(parcel, text)
        return Sent(in_status=True)

    async def _say(self, parcel: Parcel, text: str) -> Sent:
        await self._bot.send_message(parcel.row.chat_id, text, reply_parameters=parcel.reply)
        return Sent()


async def _until_a_job_ends(events: "asyncio.Queue[JobEvent | None]") -> None:
    """Or until the next sweep: a wake-up may have been missed, and retries have their own time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SWEEP_SECONDS):
            while (event := await events.get()) is not None and event.state in GenerationJob.LIVE:
                pass


def _is_refused(error: TelegramError) -> bool:
    """Telegram will not take this file, today or tomorrow: its own word for it, or 413."""
    return isinstance(error, BadRequest) or "too large" in error.message.lower()


class FileUnavailable(OSError):
    """The stored video cannot be read."""


def _read(name: str) -> bytes:
    try:
        with default_storage.open(name, "rb") as stored:
            return bytes(stored.read())
    except Exception as error:  # each storage has errors of its own
        raise FileUnavailable(f"the stored video cannot be read: {error}") from error


def _file_id(message: Message | None) -> str:
    """Telegram files a short clip without sound under animations."""
    media = message and (message.video or message.animation or message.document)
    return media.file_id if media else ""
