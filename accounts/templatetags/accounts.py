"""Why credits moved, in the language of the page: the books are in English."""

from functools import cache
from typing import Any

from django import template
from django.urls import reverse
from django.utils.translation import get_language, gettext
from django.utils.translation import gettext as _

from accounts.languages import words_version
from videoplatform.staff_menu import NAVIGATION

register = template.Library()

# In this order: nearly every browser claims to be Chrome and Safari as well, and every phone a Mac or a Linux.
BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("YaBrowser/", "Yandex Browser"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("CriOS/", "Chrome"),
    ("Safari/", "Safari"),
)
SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("CrOS", "ChromeOS"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


@register.filter
def browser_words(user_agent: str) -> str:
    """`Firefox, Windows` from a User-Agent header; its beginning where nothing in it is known."""
    browser, system = _first(BROWSERS, user_agent), _first(SYSTEMS, user_agent)
    return ", ".join(filter(None, (browser, system))) or user_agent[:40] or _("unknown browser")


def _first(known: tuple[tuple[str, str], ...], user_agent: str) -> str:
    return next((name for token, name in known if token in user_agent), "")


# For the head of the staff's pages: where one is, in the words of the menu.


Part = dict[str, Any]


@register.filter
def as_the_menu_says(parts: list[Part]) -> list[Part]:
    """unfold's way to a page: without the app that the code lives in, each list under its name in the menu."""
    if len(parts) > 1:
        parts = parts[1:]
    return [part | {"title": _titles().get(str(part.get("link")), part["title"])} for part in parts]


@cache
def _titles() -> dict[str, str]:
    return {str(item["link"]): item["title"] for group in NAVIGATION for item in group["items"]}


# What the pages need to know about languages.


@register.simple_tag
def words_url() -> str:
    """The address of the words that the scripts of a page use, in the language of the page."""
    language = get_language() or "en"
    return reverse("words", kwargs={"language": language, "version": words_version(language)})


# What a browser says of itself, in two words.


@register.filter
def reason_words(reason: str) -> str:
    """Our own reasons translated, also `Video failed: <why>`; what staff wrote as it is."""
    happened, colon, why = reason.partition(": ")
    return f"{_known(happened)}: {_known(why)}" if colon and why else _known(reason)


def _known(words: str) -> str:
    return gettext(words) if words else ""
