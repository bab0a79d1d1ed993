"""What became of a job reaches the person who asked for it, and nothing of that blocks generation.

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
from django.utils import translation
from telegram import InputMediaVideo, Message
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY
from generation.jobs.events import JobEvent, hub
from generation.models import GenerationJob
from telegram_bot import links
from telegram_bot.models import JobMessage
from telegram_bot.sending import client, outbox, retrying
from telegram_bot.sending.client import (
    MEDIA_SECONDS,
    BotClient,
    is_transient,
    is_unmodified,
    may_have_arrived,
    wait_asked_for,
)
from telegram_bot.sending.outbox import Parcel, Sent
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.sending.retrying import written
from telegram_bot.task_group import Crew
from telegram_bot.texts import jobs
from telegram_bot.texts import jobs as words

logger = logging.getLogger(__name__)

State = GenerationJob.State
Delivery = JobMessage.State

SWEEP_SECONDS = 1.0
AT_ONCE = 32
UPLOADS_AT_ONCE = 4
# Bots may upload 50 MB (core.telegram.org/bots/faq); measured in thousands here to stay on the safe side.
MAX_UPLOAD_BYTES = 50 * 1000 * 1000
# From this many failed uploads on, each further one that fails is followed by a link.
LINK_AFTER = 4
GIVE_UP_AFTER = timedelta(days=1)
LONGEST_PAUSE = 300.0


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
            "reply_markup": jobs.of_job(job),
        }
        return cls(file, f"{job.public_id}.mp4", facts)


class Deliveries:
    """Sends what became of jobs, several at a time."""

    def __init__(self, *, bot: BotClient, crew: Crew, live: LiveStatus) -> None:
        self._bot, self._crew, self._live = bot, crew, live
        self._active: set[int] = set()
        self._slots, self._uploads = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def run(self) -> None:
        """Send what is due, whenever a job ends and every few seconds."""
        with hub.subscribe() as events:
            while True:
                try:
                    for row_id, job_id in await outbox.due(self._bot.id, besides=self._active):
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
                parcel = await outbox.load(row_id)
                if parcel.row.state == Delivery.PENDING:
                    with translation.override(parcel.language):
                        await self._deliver(parcel)
                elif parcel.row.status_message_id is not None:
                    await self._remove_status(parcel.row, parcel.row.status_message_id)
        except DATABASE_AWAY as error:
            logger.warning("delivery of job %s has to wait: %s", job_id.hex, error)
        except InvalidToken:
            raise
        except JobMessage.DoesNotExist:
            logger.info("job %s is not delivered: its owner left", job_id.hex)
        except Exception as error:
            # One delivery that fails in a new way must not stop the others, nor be tried without a pause.
            logger.exception("delivery of job %s failed", job_id.hex)
            await outbox.put_off(row_id, error=repr(error), seconds=LONGEST_PAUSE)
        finally:
            self._active.discard(row_id)

    async def _deliver(self, parcel: Parcel) -> None:
        if parcel.job.deleted_at is not None:
            await self._drop(parcel)
            return
        try:
            async with client.turn():
                status = await self._finish(parcel, await self._send(parcel))
        except InvalidToken:
            raise
        except ChatMigrated as error:
            await outbox.move_chat(parcel.row, error.new_chat_id)
        except Forbidden as error:
            await outbox.mark_failed(parcel.row, error=str(error), blocked=True)
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
        await outbox.mark_failed(parcel.row, error="deleted by its owner")

    async def _note(self, parcel: Parcel, error: Exception) -> None:
        """A permanent error ends it, any other one is for another try."""
        too_old = parcel.age is not None and parcel.age > GIVE_UP_AFTER
        if isinstance(error, BadRequest) or too_old:
            await outbox.mark_failed(parcel.row, error=str(error))
            logger.warning("job %s cannot be delivered: %s", parcel.job.id.hex, error)
            return
        asked = wait_asked_for(error)
        pause = asked or retrying.delay(parcel.row.attempts + 1, longest=LONGEST_PAUSE)
        await outbox.try_later(
            parcel.row, error=str(error) or repr(error), seconds=pause, counts=asked is None
        )
        logger.warning("job %s is not delivered yet, again in %.0f s: %s", parcel.job.id.hex, pause, error)

    async def _finish(self, parcel: Parcel, sent: Sent) -> int | None:
        """The status message that is still to be removed."""
        mark = partial(outbox.mark_sent, parcel.row, sent)
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
                pause = wait_asked_for(error) or retrying.delay(row.attempts + 1)
                await outbox.try_later(row, error=str(error), seconds=pause, counts=True)
                return
            logger.info("the status message %s cannot be removed: %s", message_id, error)
        await outbox.forget_status(row.pk)

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
            async with self._uploads:
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
        await outbox.begin_upload(parcel.row.pk)
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
                await outbox.forget_upload(parcel.row.pk)
            raise
        return Sent(message.message_id, _file_id(message))

    async def _put_into_status(self, parcel: Parcel, clip: Clip, status: int) -> Sent:
        facts = dict(clip.facts)
        keyboard = facts.pop("reply_markup")
        video = InputMediaVideo(clip.file, filename=clip.filename, **facts)
        try:
            message = await self._bot.edit_message_media(
                video,
                chat_id=parcel.row.chat_id,
                message_id=status,
                reply_markup=keyboard,
                read_timeout=MEDIA_SECONDS,
            )
        except BadRequest as error:
            if not is_unmodified(error):
                raise
            return Sent(status, in_status=True)
        return Sent(status, _file_id(message if isinstance(message, Message) else None), in_status=True)

    async def _send_link(self, parcel: Parcel) -> Sent:
        url = links.video_page(parcel.job)
        return await self._say(parcel, words.link_instead(parcel.job, balance_left=parcel.balance, url=url))

    async def _show_cancel(self, parcel: Parcel) -> Sent:
        """In the status message, without a sound: whoever canceled it knows."""
        text, status = jobs.canceled(parcel.job.prompt), parcel.row.status_message_id
        if status is None:
            return await self._say(parcel, text)
        try:
            await self._bot.edit_message_text(
                text,
                chat_id=parcel.row.chat_id,
                message_id=status,
                reply_markup=jobs.of_job(parcel.job),
            )
        except BadRequest as error:
            if not is_unmodified(error):
                return await self._say(parcel, text)
        return Sent(status, in_status=True)

    async def _say(self, parcel: Parcel, text: str) -> Sent:
        keyboard = jobs.of_job(parcel.job)
        message = await self._bot.send_message(
            parcel.row.chat_id, text, reply_markup=keyboard, reply_parameters=parcel.reply
        )
        return Sent(message.message_id)


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
