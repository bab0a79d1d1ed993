"""Run the Telegram bot."""

import asyncio
import logging
import sys
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import Tags
from django.core.management.base import BaseCommand, CommandError
from telegram.error import InvalidToken

from telegram_bot.links import bot_id_of
from telegram_bot.sending.client import connect_to, hide_token_in_logs
from telegram_bot.service import run

logger = logging.getLogger(__name__)

# For the supervisor: no restart can mend this.
EXIT_CONFIGURATION = 2


class Command(BaseCommand):
    help = "Run the Telegram bot: commands, progress, delivery. One instance works, any others stand by."
    requires_system_checks = [Tags.models]  # without those of the site's pages

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGTERM. Exits with 2 when the token is missing or wrong."""
        token, base_url = settings.TELEGRAM_BOT_TOKEN, settings.TELEGRAM_API_BASE_URL
        if not token:
            raise CommandError(
                "TELEGRAM_BOT_TOKEN is not set. Get a token from @BotFather in Telegram and put it into .env.",
                returncode=EXIT_CONFIGURATION,
            )
        try:
            bot_id_of(token)
        except ValueError as error:
            raise CommandError(str(error), returncode=EXIT_CONFIGURATION) from None
        if urlsplit(base_url).scheme not in ("http", "https") or not base_url.endswith("/bot"):
            raise CommandError(
                f"TELEGRAM_API_BASE_URL must start with http:// or https:// and end in /bot. It is {base_url}",
                returncode=EXIT_CONFIGURATION,
            )
        hide_token_in_logs(token)
        try:
            asyncio.run(run(connect_to(token=token, base_url=base_url)))
        except InvalidToken:
            # Its own message holds the token.
            raise CommandError(
                "Telegram does not know TELEGRAM_BOT_TOKEN: it was revoked or mistyped, or TELEGRAM_API_BASE_URL "
                "is no Bot API server (it ends in /bot).",
                returncode=EXIT_CONFIGURATION,
            ) from None
        except Exception:
            logger.exception("the bot died")
            sys.exit(1)
