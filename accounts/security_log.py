"""The security log: what is done with accounts, and from where, so that an attack leaves a trace.

It is in the database for staff and for the user, and one line each of the logger `security` for other programs.
"""

import logging
from datetime import timedelta
from typing import Any

from allauth.account import signals as account
from allauth.mfa import signals as mfa
from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.db.models import Q
from django.db.models.functions import Now
from django.dispatch import Signal, receiver
from django.http import HttpRequest
from django.utils.translation import gettext_noop as _

from accounts import limits
from accounts.models import SecurityEvent, User
from accounts.staff.actor import address_of

logger = logging.getLogger("security")

# What allauth and Django tell of, in words.
TOLD: tuple[tuple[Signal, str], ...] = (
    (user_logged_in, _("signed in")),
    (user_logged_out, _("signed out")),
    (account.user_signed_up, _("signed up")),
    (account.password_set, _("password set")),
    (account.password_changed, _("password changed")),
    (account.password_reset, _("password reset")),
    (account.email_added, _("address added")),
    (account.email_changed, _("address changed")),
    (account.email_confirmed, _("address confirmed")),
    (mfa.authenticator_added, _("second step added")),
    (mfa.authenticator_removed, _("second step removed")),
    (mfa.authentication_failed, _("second step failed")),
)


def note(what: str, user: User | None, request: HttpRequest | None = None, *, detail: str = "") -> None:
    """Write one event. request: where it came from; None for what comes by the bot or a command."""
    address = address_of(request) if request else ""
    agent = request.headers.get("User-Agent", "") if request else ""
    words = {name: _printable(text) for name, text in (("agent", agent), ("detail", detail))}
    SecurityEvent.objects.create(what=what, user=user, address=address, **words)
    logger.info("%s user=%s address=%s %s", what, user.pk if user else "-", address or "-", words["detail"])


def note_wrong_key(request: HttpRequest) -> None:
    """Write that a wrong API key came, once an hour for a network: a flood of them must not fill the log."""
    try:
        limits.take("log_wrong_key", limits.network_of(address_of(request)))
    except limits.TooOften:
        return
    note("wrong API key", None, request)


def prune() -> int:
    """Delete what is older than SECURITY_LOG_DAYS. Returns how many."""
    old = SecurityEvent.objects.filter(at__lt=Now() - timedelta(days=settings.SECURITY_LOG_DAYS))
    return old.delete()[0]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def _listen(signal: Signal, what: str) -> None:
    @receiver(signal, dispatch_uid=f"accounts.security_log.{what}", weak=False)
    def hear(request: HttpRequest, **about: Any) -> None:
        address: Any = about.get("email_address") or about.get("to_email_address")
        kind = getattr(about.get("authenticator"), "type", "")
        user = about.get("user") or address.user
        note(what, user, request, detail=str(address.email if address else kind))


for _signal, _what in TOLD:
    _listen(_signal, _what)


@receiver(user_login_failed, dispatch_uid="accounts.security_log.failed")
def failed(credentials: dict[str, Any], request: HttpRequest | None = None, **__: Any) -> None:
    """Write the name or address that was typed, which no user may have."""
    name = str(credentials.get("username") or credentials.get("email") or "")
    known = Q(username__iexact=name) | Q(emailaddress__email__iexact=name, emailaddress__verified=True)
    user = User.objects.filter(known).first() if name.isprintable() else None
    note(_("sign-in failed"), user, request, detail=name)
