"""Updates that Telegram brings itself, instead of being asked for them: into the same inbox.

Telegram repeats what was not answered with 200, so an answer is given when the update is stored, and not before.
"""

import json
import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from telegram_bot import bell, inbox
from telegram_bot.bot_token import bot_id_of

logger = logging.getLogger(__name__)

HEADER = "X-Telegram-Bot-Api-Secret-Token"


def secret() -> str:
    """What Telegram says to prove that it is Telegram; nobody has to choose or keep it."""
    return salted_hmac("telegram_bot.webhook", settings.TELEGRAM_BOT_TOKEN, algorithm="sha256").hexdigest()


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
        bell.ring(bell.INBOX)
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
