"""Handlers by what they answer. Each module of `commands` registers its own with these decorators:

@command("balance", menu=gettext_lazy("Show your credits"))   /balance
@deep_link("link")                                            /start link_<argument>
@button("cancel")                                             a button of `parts.button(label, "cancel", argument)`
@message("successful_payment")                                a message that has this field
@update("pre_checkout_query")                                 an update of another kind: the part of that name
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from django.conf import settings
from django.utils import translation
from django.utils.functional import Promise
from telegram import BotCommand

from telegram_bot.receiving.context import Press, Request
from telegram_bot.sending.client import BotClient

RequestHandler = Callable[[Request], Awaitable[None]]
PressHandler = Callable[[Press], Awaitable[None]]
UpdateHandler = Callable[[BotClient, Any], Awaitable[None]]
H = TypeVar("H")

COMMANDS: dict[str, RequestHandler] = {}
DEEP_LINKS: dict[str, RequestHandler] = {}
BUTTONS: dict[str, PressHandler] = {}
MESSAGES: dict[str, RequestHandler] = {}
UPDATES: dict[str, UpdateHandler] = {}

# The descriptions of commands in the menu, which lists them in this order. Others work all the same.
_descriptions: dict[str, Promise] = {}
MENU = (
    "video", "balance", "history", "cancel", "presets", "settings", "buy", "link", "login", "paysupport", "terms",
    "help", "start",
)  # fmt: skip
SHOP = {"buy", "paysupport", "terms"}


def command(name: str, *, menu: Promise | None = None) -> Callable[[RequestHandler], RequestHandler]:
    """Handle `/name`; the text after it is the request's argument."""
    if menu is not None:
        _descriptions[name] = menu
    return _into(COMMANDS, name)


def deep_link(prefix: str) -> Callable[[RequestHandler], RequestHandler]:
    """Handle `t.me/<bot>?start=<prefix>_<argument>`, which Telegram brings as `/start <prefix>_<argument>`."""
    return _into(DEEP_LINKS, prefix)


def button(name: str) -> Callable[[PressHandler], PressHandler]:
    """Handle presses on buttons made by `parts.button(label, name, argument)`."""
    return _into(BUTTONS, name)


def message(field: str) -> Callable[[RequestHandler], RequestHandler]:
    """Handle messages that have this field of Telegram's Message, such as `successful_payment`."""
    return _into(MESSAGES, field)


def update(kind: str) -> Callable[[UpdateHandler], UpdateHandler]:
    """Handle updates of this kind; from then on Telegram is asked for them."""
    return _into(UPDATES, kind)


def _into(handlers: dict[str, H], name: str) -> Callable[[H], H]:
    def register(handler: H) -> H:
        handlers[name] = handler
        return handler

    return register


def kinds_of_updates() -> list[str]:
    """List the kinds that Telegram is asked for; it keeps the rest to itself."""
    return ["message", "callback_query", *UPDATES]


def menu(language: str) -> list[BotCommand]:
    """Make the menu in a language of settings.LANGUAGES."""
    with translation.override(language):
        return [_entry(name) for name in MENU]


def besides_video(*, shop: bool) -> list[BotCommand]:
    """List the commands of the help below /video, in the active language; those of the shop if there is one."""
    hidden = {"video", "start"} | (set() if shop else SHOP)
    return [_entry(name) for name in MENU if name not in hidden]


def _entry(name: str) -> BotCommand:
    return BotCommand(name, str(_descriptions[name]))


def languages() -> list[tuple[str, str | None]]:
    """List languages as Django and as Telegram call them; Telegram's None stands for all others."""
    default = settings.LANGUAGE_CODE
    return [(default, None), *((code, code) for code, _ in settings.LANGUAGES if code != default)]
