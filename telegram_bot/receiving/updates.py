"""Updates that Telegram brings itself, instead of being asked for them: into the same inbox.

Telegram repeats what was not answered with 200, so an answer is given when the update is stored, and not before.
"""

import asyncio
import json
import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from telegram.error import Conflict, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY
from telegram_bot import wakeup
from telegram_bot.receiving import inbox, routes
from telegram_bot.receiving.inbox import has_id, store
from telegram_bot.receiving.worker import Worker
from telegram_bot.sending import retrying
from telegram_bot.sending.client import BotClient, bot_id_of, wait_asked_for

logger = logging.getLogger(__name__)

POLL_SECONDS = 30


async def poll_for_ever(bot: BotClient, bot_id: int, worker: Worker) -> None:
    """Hand every update that was stored to `worker`."""
    # Ids are drawn at random after an idle week: an offset is used to acknowledge a batch, and then forgotten.
    offset: int | None = None
    waits = retrying.delays(longest=30.0)
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
        waits = retrying.delays(longest=30.0)


async def _wait_out(error: Exception, pause: float) -> None:
    if isinstance(error, InvalidToken):
        raise error
    if isinstance(error, Conflict):
        logger.warning("Telegram says that somebody else polls for this bot, too: %s", error)
    else:
        logger.warning("cannot fetch updates, trying again: %s", error)
    await asyncio.sleep(wait_asked_for(error) or pause)


# Fetches updates from Telegram, and asks for the next ones when these are stored.


HEADER = "X-Telegram-Bot-Api-Secret-Token"


def secret() -> str:
    """What Telegram says to prove that it is Telegram; nobody has to choose or keep it."""
    return salted_hmac(
        "telegram_bot.receiving.updates", settings.TELEGRAM_BOT_TOKEN, algorithm="sha256"
    ).hexdigest()


@csrf_exempt
@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    """One update. 403 without the secret, 400 for what is none, 404 while updates are fetched instead."""
    if not (settings.TELEGRAM_WEBHOOK_URL and settings.TELEGRAM_BOT_TOKEN):
        raise Http404
    if not constant_time_compare(request.headers.get(HEADER, ""), secret()):
        logger.warning("somebody without the secret token posted to the webhook")
        return HttpResponse(status=403)
    update = _parse(request.body)
    if update is None:
        return HttpResponse(status=400)
    with transaction.atomic():
        inbox.store_now(bot_id_of(settings.TELEGRAM_BOT_TOKEN), [update])
        wakeup.ring(wakeup.INBOX)
    return HttpResponse()


def _parse(body: bytes) -> dict[str, Any] | None:
    """None for what can never be handled: without a number it cannot be told from others."""
    try:
        update = json.loads(body)
    except (ValueError, RecursionError):
        update = None
    if isinstance(update, dict) and inbox.has_id(update):
        return update
    logger.error("the webhook got something that is no update")
    return None
