"""What the bot answers to, and who handles it. Each module of `commands` registers its own with these decorators:

@command("balance", menu=gettext_lazy("Show your credits"))   /balance
@deep_link("link")                                            /start link_<argument>
@button("cancel")                                             a button with `texts.buttons.data("cancel", argument)`
@message("successful_payment")                                a message that has this field
@update("pre_checkout_query")                                 an update of another kind, as it came
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from django.conf import settings
from django.utils import translation
from django.utils.functional import Promise
from telegram import BotCommand

from telegram_bot.receiving.context import Incoming, Press, Request

RequestHandler = Callable[[Request], Awaitable[None]]
PressHandler = Callable[[Press], Awaitable[None]]
UpdateHandler = Callable[[Incoming], Awaitable[None]]
H = TypeVar("H")


@dataclass(frozen=True)
class Command:
    """`menu` is what stands beside it in the menu; without it, the command works all the same."""

    handler: RequestHandler
    menu: Promise | str = ""


COMMANDS: dict[str, Command] = {}
DEEP_LINKS: dict[str, RequestHandler] = {}
BUTTONS: dict[str, PressHandler] = {}
MESSAGES: dict[str, RequestHandler] = {}
UPDATES: dict[str, UpdateHandler] = {}


def command(name: str, *, menu: Promise | str = "") -> Callable[[RequestHandler], RequestHandler]:
    """Handles `/name`; what follows it is the request's argument."""

    def register(handler: RequestHandler) -> RequestHandler:
        COMMANDS[name] = Command(handler, menu)
        return handler

    return register


def deep_link(prefix: str) -> Callable[[RequestHandler], RequestHandler]:
    """Handles `t.me/<bot>?start=<prefix>_<argument>`, which Telegram brings as `/start <prefix>_<argument>`."""
    return _into(DEEP_LINKS, prefix)


def button(name: str) -> Callable[[PressHandler], PressHandler]:
    """Handles presses on buttons whose data is `data(name, argument)`."""
    return _into(BUTTONS, name)


def message(field: str) -> Callable[[RequestHandler], RequestHandler]:
    """Handles messages that have this field of Telegram's Message, such as `successful_payment`."""
    return _into(MESSAGES, field)


def update(kind: str) -> Callable[[UpdateHandler], UpdateHandler]:
    """Handles updates of this kind; from then on Telegram is asked for them."""
    return _into(UPDATES, kind)


def kinds_of_updates() -> list[str]:
    """What Telegram is asked for; it keeps the rest to itself."""
    return ["message", "callback_query", *UPDATES]


def _into(handlers: dict[str, H], name: str) -> Callable[[H], H]:
    def register(handler: H) -> H:
        handlers[name] = handler
        return handler

    return register


# What stands behind the menu button, in every language.


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
    return BotCommand(name, str(COMMANDS[name].menu))


def languages() -> list[tuple[str, str | None]]:
    """Languages as Django and as Telegram call them; Telegram's None is for everybody else."""
    default = settings.LANGUAGE_CODE
    return [(default, None), *((code, code) for code, _ in settings.LANGUAGES if code != default)]
