"""What every page of the site shows: the balance in the header."""

from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from accounts.models import CreditAccount, User


def wallet(request: HttpRequest) -> dict[str, Any]:
    """`wallet`: the visitor's CreditAccount, read when a template first asks for it: the admin pays nothing for it."""
    return {
        "wallet": SimpleLazyObject(lambda: CreditAccount.objects.get(user=cast("User", request.user))),
        "can_send_email": bool(settings.EMAIL_HOST),
    }
