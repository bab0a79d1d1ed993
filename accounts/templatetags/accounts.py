"""Template helpers of the account's pages and of the admin's head."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

from django import template
from django.urls import reverse
from django.utils.formats import date_format
from django.utils.translation import get_language, gettext

from accounts.languages import catalog_version
from videoplatform.staff_menu import NAVIGATION

register = template.Library()

# In this order: nearly every browser claims to be Chrome and Safari as well, and every phone a Mac or a Linux.
BROWSERS = {
    "Edg": "Edge",
    "OPR/": "Opera",
    "YaBrowser/": "Yandex Browser",
    "SamsungBrowser/": "Samsung Internet",
    "Firefox/": "Firefox",
    "FxiOS/": "Firefox",
    "Chrome/": "Chrome",
    "CriOS/": "Chrome",
    "Safari/": "Safari",
}
SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "CrOS": "ChromeOS",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}


@register.filter
def browser_name(user_agent: str) -> str:
    """Name browser and system of a User-Agent header: `Firefox, Windows`; its beginning where neither is known."""
    known = (
        next((name for token, name in names.items() if token in user_agent), "")
        for names in (BROWSERS, SYSTEMS)
    )
    return ", ".join(filter(None, known)) or user_agent[:40] or gettext("unknown browser")


@register.filter
def day(moment: datetime) -> str:
    """Write a date as the reader's language does: `1 Dec 2026`, `1 декабря 2026`."""
    return date_format(moment, "DATE_FORMAT")


@register.filter
def day_time(moment: datetime) -> str:
    """Write a date and its time in UTC; scripts put it into the reader's own zone."""
    return f"{day(moment)} {moment.astimezone(UTC):%H:%M} UTC"


@register.filter
def menu_titles(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cut the app from unfold's breadcrumbs, and give each list its title in the menu."""
    titles = _titles()
    return [part | {"title": titles.get(str(part.get("link")), part["title"])} for part in parts[1:] or parts]


@cache
def _titles() -> dict[str, str]:
    return {str(item["link"]): item["title"] for group in NAVIGATION for item in group["items"]}


@register.simple_tag
def catalog_url() -> str:
    """Return the address of the scripts' message catalog in the page's language."""
    language = get_language() or "en"
    return reverse("words", kwargs={"language": language, "version": catalog_version(language)})


@register.filter
def translated_reason(reason: str) -> str:
    """Translate a reason of the ledger, also `Video failed: <why>`; text that staff wrote stays as it is."""
    event, _colon, why = reason.partition(": ")
    texts = [event, why] if why else [reason]
    return ": ".join(text and gettext(text) for text in texts)  # gettext("") is the catalog's header
