"""Delivery by the Bot API: which errors end a row of an outbox, and the channels for notices and refunds."""

import logging
from abc import abstractmethod
from datetime import timedelta
from functools import partial
from typing import TypeVar

from django.db.models import QuerySet
from telegram import InlineKeyboardMarkup
from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError

from generation.database import in_database
from generation.outbox import Channel, OutboxRow, TryLater
from generation.retrying import written
from telegram_bot import refunds
from telegram_bot.models import Notice, StarPayment
from telegram_bot.sending import client, outbox
from telegram_bot.sending.client import PERMANENT, BotClient, wait_asked_for

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=OutboxRow)
GIVE_UP_AFTER = timedelta(days=1)
ALREADY_REFUNDED = "CHARGE_ALREADY_REFUNDED"

mark_failed = in_database(outbox.mark_failed)


class TelegramChannel(Channel[R]):
    """Rows that are sent by the Bot API: a permanent error ends a row, any other one is for another try."""

    give_up_after: timedelta | None = GIVE_UP_AFTER

    def __init__(self, bot: BotClient) -> None:
        self._bot = bot

    @abstractmethod
    async def send(self, row: R) -> None:
        """Deliver a row and settle it. Errors of Telegram and of files are the caller's."""

    @abstractmethod
    async def fail(self, row: R, error: Exception) -> None:
        """Settle a row that can never be delivered."""

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


class Notices(TelegramChannel[Notice]):
    """Texts that other processes wrote down, sent one after the other."""

    def due(self) -> "QuerySet[Notice]":
        return Notice.due().filter(bot_id=self._bot.id)

    async def send(self, row: Notice) -> None:
        markup = InlineKeyboardMarkup.de_json({"inline_keyboard": row.keyboard}, self._bot)
        async with client.turn():
            await self._bot.send_message(row.chat_id, row.text, reply_markup=markup if row.keyboard else None)
            mark = partial(in_database(outbox.mark_notice_sent), row)
            await written(mark, about=str(row))

    async def fail(self, row: Notice, error: Exception) -> None:
        await mark_failed(row, error=str(error), blocked=isinstance(error, Forbidden))


class Refunds(TelegramChannel[StarPayment]):
    """Asks Telegram to give Stars back. An answer that says nothing is no verdict: the same question is asked again,
    which Telegram answers with CHARGE_ALREADY_REFUNDED if the first one went through.
    """

    give_up_after = None
    longest_pause = 600.0

    def due(self) -> "QuerySet[StarPayment]":
        return StarPayment.due().filter(bot_id=self._bot.id)

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
