"""Fetches updates from Telegram, and asks for the next ones when these are stored."""

import asyncio
import logging

from telegram.error import Conflict, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY
from telegram_bot import backoff, routes
from telegram_bot.client import BotClient, wait_asked_for
from telegram_bot.inbox import has_id, store
from telegram_bot.worker import Worker

logger = logging.getLogger(__name__)

POLL_SECONDS = 30


async def poll_for_ever(bot: BotClient, bot_id: int, worker: Worker) -> None:
    """Hand every update that was stored to `worker`."""
    # Ids are drawn at random after an idle week: an offset is used to acknowledge a batch, and then forgotten.
    offset: int | None = None
    waits = backoff.delays(longest=30.0)
    while True:
        try:
            batch = await bot.get_raw_updates(
                offset=offset, timeout=POLL_SECONDS, kinds=routes.kinds_of_updates()
            )
            worker.take(await store(bot_id, batch))
        except (TelegramError, *DATABASE_AWAY) as error:
            await _wait_out(error, next(waits))
            continue
        ids = [update["update_id"] for update in batch if has_id(update)]
        if len(ids) < len(batch):
            logger.error("Telegram sent %d updates without a number", len(batch) - len(ids))
        offset = max(ids) + 1 if ids else None
        waits = backoff.delays(longest=30.0)


async def _wait_out(error: Exception, pause: float) -> None:
    if isinstance(error, InvalidToken):
        raise error
    if isinstance(error, Conflict):
        logger.warning("Telegram says that somebody else polls for this bot, too: %s", error)
    else:
        logger.warning("cannot fetch updates, trying again: %s", error)
    await asyncio.sleep(wait_asked_for(error) or pause)
