"""What stands behind the menu button, in every language."""

from django.conf import settings
from django.utils import translation
from telegram import BotCommand

from telegram_bot import routes

# In this order; commands that are not here work all the same.
MENU = (
    "video", "balance", "history", "cancel", "presets", "settings", "buy", "link", "login", "paysupport", "terms",
    "help", "start",
)  # fmt: skip
SHOP = {"buy", "paysupport", "terms"}


def menu(language: str) -> list[BotCommand]:
    """The menu in a language of settings.LANGUAGES."""
    with translation.override(language):
        return [_entry(name) for name in MENU]


def besides_video(*, shop: bool) -> list[BotCommand]:
    """What the help lists below /video, in the active language; what is about buying only while there is a `shop`."""
    hidden = {"video", "start"} | (set() if shop else SHOP)
    return [_entry(name) for name in MENU if name not in hidden]


def _entry(name: str) -> BotCommand:
    return BotCommand(name, str(routes.COMMANDS[name].menu))


def languages() -> list[tuple[str, str | None]]:
    """Languages as Django and as Telegram call them; Telegram's None is for everybody else."""
    default = settings.LANGUAGE_CODE
    return [(default, None), *((code, code) for code, _ in settings.LANGUAGES if code != default)]
