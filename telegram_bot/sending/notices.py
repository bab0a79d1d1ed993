"""The bot's process sends the notices that are due. A crash loses none, and repeats one at most."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from telegram import InlineKeyboardMarkup
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from telegram_bot import wakeup
from telegram_bot.models import Notice
from telegram_bot.receiving import context
from telegram_bot.sending import client, retrying
from telegram_bot.sending.client import BotClient, bot_id_of, is_transient, wait_asked_for
from telegram_bot.sending.retrying import written

if TYPE_CHECKING:  # processes that only write a notice down start sooner without python-telegram-bot
    from telegram import InlineKeyboardButton

State = Notice.State
GIVE_UP_AFTER = timedelta(days=1)
KEEP = timedelta(days=7)

Rows = Sequence[Sequence["InlineKeyboardButton"]]


@transaction.atomic
def tell(*, chat_id: int, text: str, buttons: Rows = ()) -> None:
    """Have the bot say something, in Telegram's HTML; when the current transaction commits."""
    keyboard = [[button.to_dict() for button in row] for row in buttons]
    bot_id = bot_id_of(settings.TELEGRAM_BOT_TOKEN)
    Notice.objects.create(bot_id=bot_id, chat_id=chat_id, text=text, keyboard=keyboard)
    wakeup.ring(wakeup.NOTICES)


@in_database
def due(bot_id: int) -> list[Notice]:
    rows = Notice.objects.filter(bot_id=bot_id, state=State.PENDING, next_attempt_at__lte=Now())
    return list(rows.order_by("pk")[:100])


@in_database
def settle(row: Notice, state: State, error: str = "") -> None:
    """Nothing more will be done about it."""
    sent_at = Now() if state == State.SENT else None
    Notice.objects.filter(pk=row.pk).update(state=state, error=error[:500], sent_at=sent_at)


@in_database
def try_later(row: Notice, *, error: str, seconds: float) -> None:
    when = Now() + timedelta(seconds=seconds)
    Notice.objects.filter(pk=row.pk).update(
        attempts=row.attempts + 1, next_attempt_at=when, error=error[:500]
    )


@in_database
def is_too_old(row: Notice) -> bool:
    return Notice.objects.filter(pk=row.pk, created_at__lt=Now() - GIVE_UP_AFTER).exists()


def prune() -> int:
    """Forget what was sent a week ago."""
    old = Notice.objects.filter(created_at__lt=Now() - KEEP).exclude(state=State.PENDING)
    return old.delete()[0]


# Messages that the site, the admin and the books have for somebody in Telegram: written down by whoever has one, sent
# by the bot's process (`notice_delivery`).
#


logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
LONGEST_PAUSE = 300.0

mark_blocked = in_database(context.mark_blocked)


async def send_for_ever(bot: BotClient, bot_id: int, called: asyncio.Event) -> None:
    """Send what is due, one after the other, whenever there is something and every few seconds."""
    while True:
        try:
            for row in await due(bot_id):
                await _send(bot, row)
        except DATABASE_AWAY as error:
            logger.warning("cannot look for notices now: %s", error)
        await wakeup.called_or_later(called, seconds=LOOK_SECONDS)


async def _send(bot: BotClient, row: Notice) -> None:
    try:
        async with client.turn():
            await bot.send_message(row.chat_id, row.text, reply_markup=_markup(row, bot))
            await written(partial(settle, row, State.SENT), about=f"notice {row.pk}")
    except InvalidToken:
        raise
    except (Forbidden, BadRequest, ChatMigrated) as error:
        logger.info("notice %s cannot be delivered: %s", row.pk, error)
        await settle(row, State.FAILED, str(error))
        if isinstance(error, Forbidden):
            await mark_blocked(chat_id=row.chat_id)
    except TelegramError as error:
        await _put_off(row, error)


async def _put_off(row: Notice, error: TelegramError) -> None:
    if not is_transient(error) or await is_too_old(row):
        await settle(row, State.FAILED, str(error))
        return
    pause = wait_asked_for(error) or retrying.delay(row.attempts + 1, longest=LONGEST_PAUSE)
    logger.warning("notice %s is not delivered yet, again in %.0f s: %s", row.pk, pause, error)
    await try_later(row, error=str(error), seconds=pause)


def _markup(row: Notice, bot: BotClient) -> InlineKeyboardMarkup | None:
    if not row.keyboard:
        return None
    return InlineKeyboardMarkup.de_json({"inline_keyboard": row.keyboard}, bot)
