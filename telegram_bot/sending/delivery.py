"""Delivery by the Bot API: results of jobs, notices, and refunds of Stars, each a channel of the outbox.

A row is due from the transaction that gives cause to it. A crash loses none. It repeats one text at most (see
`client.turn`), and no result: one that may have arrived is put into the status message when it is tried again. What
cannot be sent to a chat waits for the next message of its person (`outbox.send_what_waits`).
"""

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
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
# Uploads are in memory as a whole: many small ones at once, and few large ones.
UPLOADS_AT_ONCE, LARGE_AT_ONCE = 24, 4
LARGE_BYTES = 4 * 1000 * 1000
# Bots may upload 50 MB (core.telegram.org/bots/faq); measured in thousands here to stay on the safe side.
MAX_UPLOAD_BYTES = 50 * 1000 * 1000
SIGN_AFTER_SECONDS = 1.0
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
            # What waited for its person is old, and gets its tries all the same.
            too_old = self.give_up_after and row.age is not None and row.age > self.give_up_after
            too_old = too_old and row.attempts >= LINK_AFTER
            if not isinstance(error, PERMANENT) and not too_old:
                raise TryLater(str(error) or repr(error), wait=wait_asked_for(error)) from error
            logger.warning("%s cannot be delivered: %s", row, error)
            await self.fail(row, error)


class Notices(TelegramChannel[ChatNotice]):
    """Texts from other processes, which leave one after the other."""

    table = ChatNotice
    at_once = 16

    async def send(self, row: ChatNotice) -> None:
        sent = {"state": ChatNotice.State.SENT, "sent_at": Now()}
        if row.handed_over_at is not None:
            # The process ended before the answer was there. It has arrived, unless Telegram was in trouble, too.
            await update(row, **sent, error="sent; the answer of Telegram was not heard")
            return
        markup = InlineKeyboardMarkup.de_json({"inline_keyboard": row.keyboard}, self._bot)

        async def mark(is_out: bool) -> None:
            mark = partial(update, row, handed_over_at=Now() if is_out else None)
            await written(mark, about=str(row))

        async with client.turn(mark):
            await self._bot.send_message(row.chat_id, row.text, reply_markup=markup if row.keyboard else None)
        await written(partial(update, row, **sent, error=""), about=str(row))


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
        self._live = live
        self._uploads, self._large = asyncio.Semaphore(UPLOADS_AT_ONCE), asyncio.Semaphore(LARGE_AT_ONCE)

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

    async def fail(self, row: JobMessage, error: Exception) -> None:
        """Put the result into the status message, as a link; where that fails, too, leave it for later."""
        async with self._live.lock(row.job_id):
            row = await in_database(outbox.load)(row.pk)
            with translation.override(users.language_for(row.job.user)):
                try:
                    sent = await self._into_status(row)
                except InvalidToken:
                    raise
                except TelegramError as why:
                    if is_transient(why) and row.attempts < LINK_AFTER:
                        raise TryLater(str(why), wait=wait_asked_for(why)) from why
                    logger.info("job %s is not shown in its status message: %s", row.job_id.hex, why)
                    sent = None
            if sent is None:
                await super().fail(row, error)
            else:
                mark = partial(mark_sent, row, sent, error=str(error))
                await written(mark, about=f"the delivery of job {row.job_id.hex}")

    async def _into_status(self, row: JobMessage) -> Sent | None:
        """Show the result in the status message; None when there is none."""
        if (status := row.status_message_id) is None:
            return None
        if row.job.state == State.COMPLETED:
            return await self._show_text(row, status, *self._link(row))
        return await self._show_text(row, status, texts.ended(row.job))

    async def _send_result(self, row: JobMessage) -> None:
        if row.job.deleted_at is not None:  # before it was sent: only the status message is left
            await self._remove_status(row, row.status_message_id)
            await mark_failed(row, error="deleted by its owner")
            return
        try:
            # Without a status message a text that may have arrived can only be sent again.
            async with client.turn() if row.status_message_id is None else nullcontext():
                sent = await self._send(row)
                mark = partial(mark_sent, row, sent)
                status = await written(mark, about=f"the delivery of job {row.job_id.hex}")
        except ChatMigrated as error:
            # A group became a supergroup: its old messages are out of reach.
            moved = JobMessage.objects.filter(chat_id=row.chat_id)
            there = {"chat_id": error.new_chat_id, "status_message_id": None, "reply_to": None}
            await in_database(outbox.update_each)(moved, **there)
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
        return await self._say(row, texts.ended(row.job))

    async def _send_video(self, row: JobMessage) -> Sent:
        job = row.job
        if (job.size_bytes or 0) > MAX_UPLOAD_BYTES:
            return await self._say(row, *self._link(row))
        large = self._large if (job.size_bytes or 0) > LARGE_BYTES else nullcontext()
        try:
            async with large, self._uploads:
                return await self._upload(row)
        except (InvalidToken, Forbidden, ChatMigrated):
            raise
        except (TelegramError, OSError) as error:
            # BadRequest or 413: Telegram will not take this file, today or tomorrow.
            refused = isinstance(error, BadRequest) or "too large" in str(error).lower()
            if not refused and row.attempts + 1 < LINK_AFTER:
                raise
            logger.warning("job %s cannot be uploaded, sending a link: %s", job.id.hex, error)
            return await self._say(row, *self._link(row))

    async def _upload(self, row: JobMessage) -> Sent:
        clip: bytes | str = row.file_id
        if not clip:
            clip = await asyncio.to_thread(_read, row.job.video.name or "")
        status = row.status_message_id
        show = partial(self._show_video, row, status, clip) if status else None
        sign = asyncio.create_task(self._show_that_it_comes(row))
        try:
            return await self._send_once(
                row,
                self._bot.send_video,
                clip,
                show=show,
                reply_markup=texts.of_job(row.job),
                read_timeout=MEDIA_SECONDS,
                **_facts(row),
            )
        finally:
            sign.cancel()

    async def _show_that_it_comes(self, row: JobMessage) -> None:
        """Show in the chat that a video is on its way, if it takes a while: each request delays other deliveries."""
        await asyncio.sleep(SIGN_AFTER_SECONDS)
        with contextlib.suppress(TelegramError):  # the upload hears of the same trouble
            await self._bot.send_chat_action(
                row.chat_id, ChatAction.UPLOAD_VIDEO, message_thread_id=row.thread_id
            )

    async def _send_once(
        self,
        row: JobMessage,
        send: Callable[..., Awaitable[Message]],
        what: bytes | str,
        *,
        show: Callable[[], Awaitable[Sent]] | None,
        **how: Any,
    ) -> Sent:
        """Send a result as a message of its own; where an earlier one may have arrived, `show` it in the status
        message, which can be done any number of times and still shows one.
        """
        if row.upload_began_at is not None and show:
            try:
                return await show()
            except BadRequest as error:
                logger.info("the status message of job %s cannot show it: %s", row.job_id.hex, error)
        # From now on the result may be in the chat, even if this process dies.
        await update(row, upload_began_at=Now())
        try:
            message = await client.send_in_place(
                send, row.chat_id, what, reply_to=row.reply_to, thread_id=row.thread_id, **how
            )
        except TelegramError as error:
            if not may_have_arrived(error):
                await update(row, upload_began_at=None)
            raise
        return Sent(message.message_id, _file_id(message))

    async def _show_video(self, row: JobMessage, status: int, clip: bytes | str) -> Sent:
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

    def _link(self, row: JobMessage) -> tuple[str, InlineKeyboardMarkup | None]:
        """Make the text and buttons that stand for a video that is not sent as a file."""
        balance, url = row.job.user.credit_account.balance, links.video_page(row.job)
        return texts.link_instead(row.job, balance_left=balance, url=url)

    async def _show_cancel(self, row: JobMessage) -> Sent:
        """Change the status message, without a sound: the person who canceled knows."""
        text = texts.ended(row.job)
        if row.status_message_id is not None:
            try:
                return await self._show_text(row, row.status_message_id, text)
            except BadRequest as error:
                logger.info("the status message of job %s cannot be changed: %s", row.job_id.hex, error)
        return await self._say(row, text)

    async def _show_text(
        self, row: JobMessage, status: int, text: str, markup: InlineKeyboardMarkup | None = None
    ) -> Sent:
        try:
            await self._bot.edit_message_text(
                text, chat_id=row.chat_id, message_id=status, reply_markup=markup or texts.of_job(row.job)
            )
        except BadRequest as error:
            if not is_unmodified(error):
                raise
        return Sent(status, in_status=True)

    async def _say(self, row: JobMessage, text: str, markup: InlineKeyboardMarkup | None = None) -> Sent:
        status, markup = row.status_message_id, markup or texts.of_job(row.job)
        show = partial(self._show_text, row, status, text, markup) if status else None
        return await self._send_once(row, self._bot.send_message, text, show=show, reply_markup=markup)


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
