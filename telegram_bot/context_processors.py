"""Links from the pages of the site to the chat with the bot."""

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from telegram_bot import links


def bot(request: HttpRequest) -> dict[str, Any]:
    """Add `sign_in_by_bot` and `buy_in_bot`: looked up when a template asks, empty where there is none."""
    return {
        "sign_in_by_bot": SimpleLazyObject(lambda: links.to_bot("login_here") or ""),
        "buy_in_bot": SimpleLazyObject(lambda: links.to_shop() or ""),
    }
