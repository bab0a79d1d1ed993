"""Parts of several messages."""

import html

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

# A caption may have 1024 characters; the text around the prompt needs fewer than 200.
PROMPT_UNITS = 800


def example() -> str:
    """A prompt to try."""
    return _("A red fox running through fresh snow at sunrise")


def escaped(text: str) -> str:
    return html.escape(text, quote=False)


def shortened(text: str, units: int) -> str:
    """At most `units` UTF-16 code units, which is how Telegram counts."""
    encoded = text.encode("utf-16-le", "replace")
    if len(encoded) <= 2 * units:
        return text
    return encoded[: 2 * (units - 1)].decode("utf-16-le", "ignore") + "…"


def prompt_line(prompt: str) -> str:
    return _("Prompt: %(prompt)s") % {"prompt": escaped(shortened(prompt, PROMPT_UNITS))}


def credits_of(number: int) -> str:
    """`1 credit`, `50 credits`."""
    return ngettext("%(number)d credit", "%(number)d credits", number) % {"number": number}


def seconds_of(number: int) -> str:
    return ngettext("%(number)d second", "%(number)d seconds", number) % {"number": number}


def about_seconds(number: int) -> str:
    """A guess, roundly: `about 25 s`, `about 3 min`."""
    if number < 100:
        return _("about %(number)d s") % {"number": number if number < 15 else 5 * round(number / 5)}
    return _("about %(number)d min") % {"number": round(number / 60)}


def nothing_deducted() -> str:
    return _("No credits were deducted.")


def only_in_private() -> str:
    return _("This is between you and me: please write it to me in private.")
