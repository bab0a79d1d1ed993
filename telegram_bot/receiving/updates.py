"""The two ways in which updates come into the inbox: fetched from Telegram, or brought to the webhook.

Either acknowledges an update when it is stored, and not before: fetching by the next offset, the webhook by its 200.
"""

import asyncio
import json
import logging

from django.conf import settings
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from telegram.error import Conflict, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, delays, in_database
from telegram_bot import wakeup
from telegram_bot.links import bot_id_of
from telegram_bot.receiving import inbox, routes
from telegram_bot.sending.client import BotClient, fetch_updates, wait_asked_for

logger = logging.getLogger(__name__)

POLL_SECONDS = 30
HEADER = "X-Telegram-Bot-Api-Secret-Token"


async def poll_for_ever(bot: BotClient, worker: inbox.Worker) -> None:
    """Store the updates that Telegram has, and hand them to `worker`."""
    # Ids are drawn at random after an idle week: an offset is used to acknowledge a batch, and then forgotten.
    offset: int | None = None
    pauses = delays(longest=30.0)
    while True:
        try:
            batch = await fetch_updates(
                bot, offset=offset, timeout=POLL_SECONDS, kinds=routes.kinds_of_updates()
            )
            worker.take(await in_database(inbox.store)(bot.id, batch))
        except InvalidToken:
            raise
        except (TelegramError, *DATABASE_AWAY) as error:
            what = "another process polls for this bot" if isinstance(error, Conflict) else "trying again"
            logger.warning("cannot fetch updates, %s: %s", what, error)
            await asyncio.sleep(wait_asked_for(error) or next(pauses))
            continue
        ids = [update["update_id"] for update in batch if inbox.has_id(update)]
        if len(ids) < len(batch):
            logger.error("Telegram sent %d updates without a number", len(batch) - len(ids))
        offset = max(ids) + 1 if ids else None
        pauses = delays(longest=30.0)


def secret() -> str:
    """Derive the secret by which Telegram proves that it is Telegram; it needs no setting."""
    # The salt stays whatever this module is called: with another one, posts are refused until the bot has restarted.
    return salted_hmac("telegram_bot.webhook", settings.TELEGRAM_BOT_TOKEN, algorithm="sha256").hexdigest()


@csrf_exempt
@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    """Store one update. 403 without the secret, 400 for anything else, 404 while updates are fetched instead."""
    if not (settings.TELEGRAM_WEBHOOK_URL and settings.TELEGRAM_BOT_TOKEN):
        raise Http404
    if not constant_time_compare(request.headers.get(HEADER, ""), secret()):
        logger.warning("a request without the secret token was posted to the webhook")
        return HttpResponse(status=403)
    try:
        update = json.loads(request.body)
    except (ValueError, RecursionError):
        update = None
    if not isinstance(update, dict) or not inbox.has_id(update):
        logger.error("the webhook got something that is no update")
        return HttpResponse(status=400)
    with transaction.atomic():
        inbox.store(bot_id_of(settings.TELEGRAM_BOT_TOKEN), [update])
        wakeup.call(wakeup.INBOX)
    return HttpResponse()
