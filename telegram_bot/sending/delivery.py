"""Delivery by the Bot API: results of jobs, notices, and refunds of Stars, each a channel of the outbox.

A row is due from the transaction that gives cause to it. A crash loses none. It repeats one text at most (see
`client.turn`), and no video: one that may have arrived is put into the status message when it is tried again.
"""

import asyncio
import logging
from abc import abstractmethod
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from django.core.files.storage import default_storage
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import translation
from telegram import InlineKeyboardMarkup, InputMediaVideo, Message
from telegram.constants import ChatAction
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, TelegramError

from generation.database import in_database, written
from generation.models import GenerationJob
from generation.outbox import Channel, OutboxRow, TryLater
from telegram_bot import links, refunds, users
from telegram_bot.models import ChatNotice, JobMessage, StarPayment
from telegram_bot.sending import client, outbox
from telegram_bot.sending.client import (
    MEDIA_SECONDS,
    PERMANENT,
    BotClient,
    is_transient,
    is_unmodified,
    may_have_arrived,
    quoting,
    wait_asked_for,
)
from telegram_bot.sending.outbox import Sent
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts import jobs as texts

logger = logging.getLogger(__name__)

State = GenerationJob.State
R = TypeVar("R", bound=OutboxRow)

GIVE_UP_AFTER = timedelta(days=1)
ALREADY_REFUNDED = "CHARGE_ALREADY_REFUNDED"
UPLOADS_AT_ONCE = 4
# Bots may upload 50 MB (core.telegram.org/bots/faq); measured in thousands here to stay on the safe side.
MAX_UPLOAD_BYTES = 50 * 1000 * 1000
# From this many failed uploads on, each further one that fails is followed by a link.
LINK_AFTER = 4

mark_sent = in_database(outbox.mark_sent)
mark_failed = in_database(outbox.mark_failed)
update = in_database(outbox.update)


class TelegramChannel(Channel[R]):
    """Rows that are sent by the Bot API: a permanent error ends a row, any other one is for another try."""

    give_up_after: timedelta | None = GIVE_UP_AFTER

    def __init__(self, bot: BotClient) -> None:
        self._bot = bot

    def due(self) -> "QuerySet[R]":
        return self.table.due().filter(bot_id=self._bot.id)

    @abstractmethod
    async def send(self, row: R) -> None:
        """Deliver a row and settle it. Errors of Telegram and of files are the caller's."""

    async def fail(self, row: R, error: Exception) -> None:
        """Settle a row that can never be delivered."""
        assert isinstance(row, JobMessage | ChatNotice)
        await mark_failed(row, error=str(error), blocked=isinstance(error, Forbidden))

    async def deliver(self, row: R) -> None:
        try:
            await self.send(row)
        except InvalidToken:
            raise
        except (TelegramError, OSError) as error:
            too_old = self.give_up_after and row.age is not None and row.age > self.give_up_after
            if not isinstance(error, PERMANENT) and not too_old:
                raise TryLater(str(error) or repr(error), wait=wait_asked_for(error)) from error
            logger.warning("%s cannot be delivered: %s", row, error)
            await self.fail(row, error)


class Notices(TelegramChannel[ChatNotice]):
    """Texts from other processes, sent one after the other."""

    table = ChatNotice

    async def send(self, row: ChatNotice) -> None:
        markup = InlineKeyboardMarkup.de_json({"inline_keyboard": row.keyboard}, self._bot)
        async with client.turn():
            await self._bot.send_message(row.chat_id, row.text, reply_markup=markup if row.keyboard else None)
            mark = partial(update, row, state=ChatNotice.State.SENT, error="", sent_at=Now())
            await written(mark, about=str(row))


class Refunds(TelegramChannel[StarPayment]):
    """Refunds that Telegram is asked for. Without a definite answer it is asked again, and answers
    CHARGE_ALREADY_REFUNDED if the first request went through.
    """

    table = StarPayment
    give_up_after = None
    longest_pause = 600.0

    async def send(self, row: StarPayment) -> None:
        try:
            await self._bot.refund_star_payment(row.telegram_id, row.charge_id)
        except BadRequest as error:
            if ALREADY_REFUNDED not in error.message.upper():
                raise
        await in_database(refunds.refunded)(row.pk)
        logger.info("charge %s is refunded", row.charge_id)

    async def fail(self, row: StarPayment, error: Exception) -> None:
        await in_database(refunds.refused)(row.pk, error=str(error))


class Results(TelegramChannel[JobMessage]):
    """The results of jobs, which are sent before their status messages are removed."""

    table = JobMessage
    at_once = 32

    def __init__(self, bot: BotClient, live: LiveStatus) -> None:
        super().__init__(bot)
        self._live, self._uploads = live, asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def send(self, row: JobMessage) -> None:
        async with self._live.lock(row.job_id):
            try:
                row = await in_database(outbox.load)(row.pk)
            except JobMessage.DoesNotExist:
                logger.info("job %s is not delivered: its owner left", row.job_id.hex)
                return
            if row.state == JobMessage.State.PENDING:
                with translation.override(users.language_for(row.job.user)):
                    await self._send_result(row)
            else:
                await self._remove_status(row, row.status_message_id)

    async def _send_result(self, row: JobMessage) -> None:
        if row.job.deleted_at is not None:  # before it was sent: only the status message is left
            await self._remove_status(row, row.status_message_id)
            await mark_failed(row, error="deleted by its owner")
            return
        try:
            async with client.turn():
                sent = await self._send(row)
                mark = partial(mark_sent, row, sent)
                status = await written(mark, about=f"the delivery of job {row.job_id.hex}")
        except ChatMigrated as error:
            # A group became a supergroup: its old messages are out of reach.
            moved = JobMessage.objects.filter(chat_id=row.chat_id)
            await in_database(moved.update)(chat_id=error.new_chat_id, status_message_id=None, reply_to=None)
            return
        logger.info("job %s is delivered", row.job_id.hex)
        await self._remove_status(row, status)

    async def _remove_status(self, row: JobMessage, message_id: int | None) -> None:
        if message_id is None:
            return
        try:
            await self._bot.delete_message(row.chat_id, message_id)
        except InvalidToken:
            raise
        except TelegramError as error:
            if is_transient(error) and row.attempts < LINK_AFTER:
                raise TryLater(str(error), wait=wait_asked_for(error)) from error
            logger.info("the status message %s cannot be removed: %s", message_id, error)
        await update(row, status_message_id=None, next_attempt_at=None)

    async def _send(self, row: JobMessage) -> Sent:
        match row.job.state:
            case State.COMPLETED:
                return await self._send_video(row)
            case State.CANCELED:
                return await self._show_cancel(row)
        return await self._say(row, texts.failed(row.job))

    async def _send_video(self, row: JobMessage) -> Sent:
        job = row.job
        if (job.size_bytes or 0) > MAX_UPLOAD_BYTES:
            return await self._send_link(row)
        try:
            async with self._uploads:
                return await self._upload(row)
        except (InvalidToken, Forbidden, ChatMigrated):
            raise
        except (TelegramError, OSError) as error:
            # BadRequest or 413: Telegram will not take this file, today or tomorrow.
            refused = isinstance(error, BadRequest) or "too large" in str(error).lower()
            if not refused and row.attempts + 1 < LINK_AFTER:
                raise
            logger.warning("job %s cannot be uploaded, sending a link: %s", job.id.hex, error)
            return await self._send_link(row)

    async def _upload(self, row: JobMessage) -> Sent:
        """Send the video as a message of its own; where an earlier one may have arrived, put it into the status
        message, which can be done any number of times and still shows one video.
        """
        await self._bot.send_chat_action(row.chat_id, ChatAction.UPLOAD_VIDEO)
        clip: bytes | str = row.file_id
        if not clip:
            clip = await asyncio.to_thread(_read, row.job.video.name or "")
        if row.upload_began_at is not None and row.status_message_id is not None:
            try:
                return await self._put_into_status(row, clip, row.status_message_id)
            except BadRequest as error:
                logger.info("the status message %s cannot show the video: %s", row.status_message_id, error)
        # From now on the video may be in the chat, even if this process dies.
        await update(row, upload_began_at=Now())
        try:
            message = await self._bot.send_video(
                row.chat_id,
                clip,
                reply_parameters=quoting(row.reply_to),
                reply_markup=texts.of_job(row.job),
                read_timeout=MEDIA_SECONDS,
                **_facts(row),
            )
        except TelegramError as error:
            if not may_have_arrived(error):
                await update(row, upload_began_at=None)
            raise
        return Sent(message.message_id, _file_id(message))

    async def _put_into_status(self, row: JobMessage, clip: bytes | str, status: int) -> Sent:
        try:
            message = await self._bot.edit_message_media(
                InputMediaVideo(clip, **_facts(row)),
                chat_id=row.chat_id,
                message_id=status,
                reply_markup=texts.of_job(row.job),
                read_timeout=MEDIA_SECONDS,
            )
        except BadRequest as error:
            if not is_unmodified(error):
                raise
            return Sent(status, in_status=True)
        return Sent(status, _file_id(message if isinstance(message, Message) else None), in_status=True)

    async def _send_link(self, row: JobMessage) -> Sent:
        balance, url = row.job.user.credit_account.balance, links.video_page(row.job)
        return await self._say(row, texts.link_instead(row.job, balance_left=balance, url=url))

    async def _show_cancel(self, row: JobMessage) -> Sent:
        """Change the status message, without a sound: the person who canceled knows."""
        job, status = row.job, row.status_message_id
        text = texts.canceled(job.prompt)
        if status is None:
            return await self._say(row, text)
        try:
            await self._bot.edit_message_text(
                text, chat_id=row.chat_id, message_id=status, reply_markup=texts.of_job(job)
            )
        except BadRequest as error:
            if not is_unmodified(error):
                return await self._say(row, text)
        return Sent(status, in_status=True)

    async def _say(self, row: JobMessage, text: str) -> Sent:
        message = await self._bot.send_message(
            row.chat_id, text, reply_markup=texts.of_job(row.job), reply_parameters=quoting(row.reply_to)
        )
        return Sent(message.message_id)


def _read(name: str) -> bytes:
    try:
        with default_storage.open(name, "rb") as stored:
            return bytes(stored.read())
    except Exception as error:  # each storage has errors of its own
        raise OSError(f"the stored video cannot be read: {error}") from error


def _facts(row: JobMessage) -> dict[str, Any]:
    """Describe a video as Telegram wants it; sizes in pixels."""
    job = row.job
    return {
        "filename": f"{job.public_id}.mp4",
        "caption": texts.caption(job, balance_left=row.job.user.credit_account.balance),
        "width": job.width,
        "height": job.height,
        "duration": timedelta(milliseconds=job.duration_ms or 0),
        "supports_streaming": True,
    }


def _file_id(message: Message | None) -> str:
    """Find the id of the file: Telegram files a short clip without sound under animations."""
    media = message and (message.video or message.animation or message.document)
    return media.file_id if media else ""
