"""Context processors: what the pages of the site show of the visitor's account, read when a template asks for it."""

from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from accounts import notices
from accounts.models import CreditAccount, User


def account(request: HttpRequest) -> dict[str, Any]:
    """Provide `wallet`, the visitor's CreditAccount, `notices`, pairs of id and text, and the operator's own pages."""

    def shown() -> list[tuple[int, str]]:
        user = getattr(request, "user", None)
        found = notices.unseen(user) if isinstance(user, User) else []
        return [(notice.pk, notices.text_of(notice)) for notice in found]

    return {
        "wallet": SimpleLazyObject(lambda: CreditAccount.objects.get(user=cast("User", request.user))),
        "notices": SimpleLazyObject(shown),
        "can_send_email": bool(settings.EMAIL_HOST),
        "contact": settings.SUPPORT_CONTACT,
        "contact_url": contact_url(settings.SUPPORT_CONTACT),
        "terms_url": settings.TERMS_URL,
        "privacy_url": settings.PRIVACY_URL,
    }


def contact_url(contact: str) -> str:
    """Make a link of an address, a @name on Telegram or a page; empty for other words."""
    if contact.startswith(("https://", "http://", "mailto:")):
        return contact
    if contact.startswith("@"):
        return f"https://t.me/{contact[1:]}"
    return f"mailto:{contact}" if "@" in contact and " " not in contact else ""
