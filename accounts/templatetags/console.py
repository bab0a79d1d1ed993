"""For the head of the staff's pages: where one is, in the words of the menu."""

from functools import cache
from typing import Any

from django import template

from videoplatform.staff_menu import NAVIGATION

register = template.Library()
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
