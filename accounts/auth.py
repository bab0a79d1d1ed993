"""Staff come into the admin only with a second step, while STAFF_REQUIRE_MFA is on."""

import logging
from collections.abc import Callable
from smtplib import SMTPException
from typing import Any, cast
from urllib.parse import urlencode

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.authentication import get_authentication_records
from allauth.account.internal.flows.login import record_authentication
from allauth.mfa.adapter import get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore
from django.core.exceptions import ValidationError
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.translation import gettext as _
from unfold.forms import AuthenticationForm

from accounts.models import User

logger = logging.getLogger(__name__)


class AccountAdapter(DefaultAccountAdapter):
    """allauth's own answers, but for addresses that are none and for mail that cannot be sent."""

    def is_safe_url(self, url: str | None) -> bool:
        """Whether somebody may be sent there after signing in; `http://[` is no address and never safe."""
        try:
            return bool(super().is_safe_url(url))
        except ValueError:
            return False

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Signing up and changing a password go on without the mail; whoever waits for it is told."""
        try:
            super().send_mail(template_prefix, email, context)
        except (SMTPException, OSError):
            logger.exception("a mail (%s) could not be sent", template_prefix)
            words = _("An email to %(address)s could not be sent just now. Please ask for it again later.")
            messages.error(self.request, words % {"address": email})


# Django's sessions in the database, which are asked only for a key that Django could have made.


MIN_LENGTH = 8  # as Django has it


class SessionStore(DatabaseSessionStore):
    """A cookie can hold anything, a NUL in octal included, which PostgreSQL takes for no text at all."""

    def _validate_session_key(self, key: str | None) -> bool:
        return key is not None and len(key) >= MIN_LENGTH and key.isascii() and key.isalnum()


# How staff get into the admin.


class StaffSignInForm(AuthenticationForm):
    """The admin's own form asks for a password alone, which must not lead around a second step."""

    def confirm_login_allowed(self, user: AbstractBaseUser) -> None:
        super().confirm_login_allowed(user)
        if get_adapter().is_mfa_enabled(user):
            raise ValidationError(
                "Your account has two-step sign-in. Please sign in on the site first, then come back here."
            )


# What allauth asks of this site.


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
