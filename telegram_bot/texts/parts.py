"""Parts of messages, and the buttons below them."""

import html
import re
from datetime import datetime
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

# A caption may have 1024 characters; the text around the prompt needs fewer than 200.
PROMPT_UNITS = 800
# Telegram's limit for the data of a button, in bytes.
MAX_DATA = 64


def lines(*texts: str) -> str:
    return "\n".join(texts)


def paragraphs(*texts: str) -> str:
    return "\n\n".join(texts)


def escaped(text: str) -> str:
    return html.escape(text, quote=False)


def shortened(text: str, units: int) -> str:
    """Shorten to at most `units` UTF-16 code units, which is how Telegram counts."""
    encoded = text.encode("utf-16-le", "replace")
    if len(encoded) <= 2 * units:
        return text
    return encoded[: 2 * (units - 1)].decode("utf-16-le", "ignore") + "…"


def prompt_line(prompt: str) -> str:
    return _("Prompt: %(prompt)s") % {"prompt": escaped(shortened(prompt, PROMPT_UNITS))}


# Telegram knows the reader's time zone, and the bot does not; what stands inside is for programs that do not know it.
LOCAL_TIME = re.compile(r"</?tg-time[^>]*>")


def local_time(when: datetime, otherwise: str, *, how: str = "dt") -> str:
    """Show a moment in the reader's own zone and language; `how` by the letters of Telegram's tg-time."""
    return f'<tg-time unix="{int(when.timestamp())}" format="{how}">{otherwise}</tg-time>'


def without_local_times(text: str) -> str:
    return LOCAL_TIME.sub("", text)


def credits_of(number: int) -> str:
    """`1 credit`, `50 credits`."""
    return ngettext("%(number)d credit", "%(number)d credits", number) % {"number": number}


def seconds_of(number: int) -> str:
    return ngettext("%(number)d second", "%(number)d seconds", number) % {"number": number}


def about_seconds(number: int) -> str:
    """Say a guess roundly: `about 25 s`, `about 3 min`."""
    if number < 100:
        return _("about %(number)d s") % {"number": number if number < 15 else 5 * round(number / 5)}
    return _("about %(number)d min") % {"number": round(number / 60)}


def balance_of(number: int) -> str:
    return _("💰 Balance: %(credits)s") % {"credits": credits_of(number)}


def only_in_private() -> str:
    return _("This is between you and me: please write it to me in private.")


def button(label: str, name: str, argument: str = "") -> InlineKeyboardButton:
    """Make a button for `@button(name)` with an argument. Raises ValueError for more than it can carry."""
    data = f"{name}:{argument}"
    if len(data.encode()) > MAX_DATA:
        raise ValueError(f"a button cannot carry {data!r}")
    return InlineKeyboardButton(label, callback_data=data)


def row(*named: tuple[str, str], argument: str = "") -> InlineKeyboardMarkup:
    """Put buttons side by side, each a label and a name, which all carry the same argument."""
    return InlineKeyboardMarkup.from_row([button(label, name, argument) for label, name in named])


def leading_to(
    text: str, label: str, url: str, *, below: InlineKeyboardMarkup | None = None
) -> tuple[str, InlineKeyboardMarkup | None]:
    """Lead to a page by a button; by its address in the text where Telegram takes no button for it.

    `below` has the other buttons. Returns the text and all buttons.
    """
    if not _is_public(url):
        return paragraphs(text, escaped(url)), below
    rows = [[InlineKeyboardButton(label, url=url)], *(below.inline_keyboard if below else [])]
    return text, InlineKeyboardMarkup(rows)


def _is_public(url: str) -> bool:
    """Check that an address is one that Telegram lets a button have, unlike http://localhost."""
    address = urlsplit(url)
    host = address.hostname or ""
    try:
        return address.scheme in ("http", "https") and ip_address(host).is_global
    except ValueError:
        return "." in host and address.scheme in ("http", "https")
