"""Context processors: what the pages of the site show of the visitor's account, read when a template asks for it."""

from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from accounts import notices
from accounts.models import CreditAccount, User


def account(request: HttpRequest) -> dict[str, Any]:
    """Provide `wallet`, the visitor's CreditAccount, and `notices`, pairs of id and text."""

    def shown() -> list[tuple[int, str]]:
        user = getattr(request, "user", None)
        found = notices.unseen(user) if isinstance(user, User) else []
        return [(notice.pk, notices.text_of(notice)) for notice in found]

    return {
        "wallet": SimpleLazyObject(lambda: CreditAccount.objects.get(user=cast("User", request.user))),
        "notices": SimpleLazyObject(shown),
        "can_send_email": bool(settings.EMAIL_HOST),
    }
