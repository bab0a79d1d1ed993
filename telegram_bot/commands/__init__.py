"""The commands and buttons, a module a subject. Importing this package registers them all (see `routes`)."""

from django.conf import settings
from django.utils import translation
from telegram import BotCommand

from telegram_bot import routes
from telegram_bot.commands import cancel, history, video, wallet, welcome

__all__ = ["cancel", "history", "menu", "video", "wallet", "welcome"]

# What stands behind the menu button, in this order.
MENU = ("video", "balance", "history", "cancel", "help")


def menu(language: str) -> list[BotCommand]:
    """The menu in a language of settings.LANGUAGES."""
    with translation.override(language):
        return [BotCommand(name, str(routes.COMMANDS[name].menu)) for name in MENU]


def languages() -> list[tuple[str, str | None]]:
    """Languages as Django and as Telegram call them; Telegram's None is for everybody else."""
    default = settings.LANGUAGE_CODE
    return [(default, None), *((code, code) for code, _ in settings.LANGUAGES if code != default)]
