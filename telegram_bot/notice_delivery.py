"""The bot's process sends the notices that are due. A crash loses none, and repeats one at most."""

import asyncio
import logging
from functools import partial

from telegram import InlineKeyboardMarkup
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from telegram_bot import backoff, bell, lane, people
from telegram_bot.client import BotClient, is_transient, wait_asked_for
from telegram_bot.marks import written
from telegram_bot.models import Notice
from telegram_bot.notices import State, due, is_too_old, settle, try_later

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
LONGEST_PAUSE = 300.0

mark_blocked = in_database(people.mark_blocked)


async def send_for_ever(bot: BotClient, bot_id: int, called: asyncio.Event) -> None:
    """Send what is due, one after the other, whenever there is something and every few seconds."""
    while True:
        try:
            for row in await due(bot_id):
                await _send(bot, row)
        except DATABASE_AWAY as error:
            logger.warning("cannot look for notices now: %s", error)
        await bell.called_or_later(called, seconds=LOOK_SECONDS)


async def _send(bot: BotClient, row: Notice) -> None:
    try:
        async with lane.turn():
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
    pause = wait_asked_for(error) or backoff.delay(row.attempts + 1, longest=LONGEST_PAUSE)
    logger.warning("notice %s is not delivered yet, again in %.0f s: %s", row.pk, pause, error)
    await try_later(row, error=str(error), seconds=pause)


def _markup(row: Notice, bot: BotClient) -> InlineKeyboardMarkup | None:
    if not row.keyboard:
        return None
    return InlineKeyboardMarkup.de_json({"inline_keyboard": row.keyboard}, bot)
