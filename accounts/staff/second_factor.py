"""Staff come into the admin only with a second step, while STAFF_REQUIRE_MFA is on."""

from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlencode

from allauth.account.authentication import get_authentication_records
from allauth.account.internal.flows.login import record_authentication
from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added
from django.conf import settings
from django.contrib import messages
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _

from accounts.models import User

# Pages of the admin that show nothing.
OPEN = {"login", "logout", "jsi18n"}


class RequireSecondFactor:
    """Middleware: sends staff to set a second step up, or to use the one they have, before they see the admin."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        match = request.resolver_match
        if (
            not settings.STAFF_REQUIRE_MFA
            or match is None
            or match.app_name != "admin"
            or match.url_name in OPEN
        ):
            return None
        user = cast("User", request.user)
        return _send_away(request, user) if user.is_authenticated and user.is_staff else None


def _send_away(request: HttpRequest, user: User) -> HttpResponse | None:
    if not get_adapter().is_mfa_enabled(user):
        messages.warning(request, _("Staff need two-step sign-in: please set it up, then come back."))
        return HttpResponseRedirect(reverse("mfa_index"))
    if any(record["method"] == "mfa" for record in get_authentication_records(request, user)):
        return None
    return HttpResponseRedirect(
        f"{reverse('mfa_reauthenticate')}?{urlencode({'next': request.get_full_path()})}"
    )


@receiver(authenticator_added, dispatch_uid="accounts.staff.count_as_used")
def count_as_used(request: HttpRequest, user: User, authenticator: Authenticator, **_: Any) -> None:
    """Whoever has just set a second step up has shown that they have it."""
    if authenticator.type != Authenticator.Type.RECOVERY_CODES:
        record_authentication(request, user, "mfa", id=authenticator.pk, type=authenticator.type)
