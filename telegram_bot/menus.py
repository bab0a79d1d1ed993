"""What stands behind the menu button, in every language."""

from django.conf import settings
from django.utils import translation
from telegram import BotCommand

from telegram_bot import routes

# In this order; commands that are not here work all the same.
MENU = ("video", "balance", "history", "buy", "cancel", "presets", "settings", "link", "login", "help")


def menu(language: str) -> list[BotCommand]:
    """The menu in a language of settings.LANGUAGES."""
    with translation.override(language):
        return [BotCommand(name, str(routes.COMMANDS[name].menu)) for name in MENU]


def languages() -> list[tuple[str, str | None]]:
    """Languages as Django and as Telegram call them; Telegram's None is for everybody else."""
    default = settings.LANGUAGE_CODE
    return [(default, None), *((code, code) for code, _ in settings.LANGUAGES if code != default)]
