"""The owner of an address takes an account back: what others made under it before they confirmed it is revoked.

Anyone can sign up with an address of someone else, and leave keys and passkeys there for the day its owner comes.
"""

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.models import EmailAddress
from allauth.account.signals import email_confirmed, password_reset
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib import messages
from django.contrib.sessions.models import Session
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils.translation import gettext as _

from accounts import api_keys, limits
from accounts.models import ApiKey, User
from accounts.signals import account_reclaimed
from accounts.staff.actor import address_of

# Ways in without the password. The others are asked for after it, and keep out who can read the owner's mail.
PASSKEYS = (Authenticator.Type.WEBAUTHN,)


def end_sessions(user: User, *, but: str | None = None) -> None:
    """Sign `user` out everywhere, but for the session with this key."""
    sessions = UserSession.objects.filter(user=user).exclude(session_key=but or "")
    Session.objects.filter(session_key__in=sessions.values("session_key")).delete()
    sessions.delete()


@receiver(password_reset, dispatch_uid="accounts.recovery.reset")
def after_reset(request: HttpRequest, user: User, **_: Any) -> None:
    """Revoke; and take from guesses of others what would keep the owner from signing in now."""
    confirmed = EmailAddress.objects.filter(user=user, verified=True).exists()
    _take_back(request, user, authenticators=PASSKEYS if confirmed else Authenticator.Type.values)
    for name in {user.username.lower(), user.email.lower()}:
        limits.forget("guess", f"{limits.network_of(address_of(request))} {name}")
        limits.forget("guess_name", name)


@receiver(email_confirmed, dispatch_uid="accounts.recovery.confirmed")
def after_confirmation(request: HttpRequest, email_address: EmailAddress, **_: Any) -> None:
    """Revoke at the first confirmation, unless it comes from the account's own session; end all other sessions."""
    user = email_address.user
    others = EmailAddress.objects.filter(user=user, verified=True).exclude(pk=email_address.pk)
    if request.user != user and not others.exists():
        _take_back(request, user, authenticators=Authenticator.Type.values)
        get_adapter().send_notification_mail("account/email/email_confirm", user)
    else:
        end_sessions(user, but=request.session.session_key if request.user == user else None)


def _take_back(request: HttpRequest, user: User, *, authenticators: Any) -> None:
    keys = ApiKey.objects.filter(user=user, revoked_at=None)
    for key in keys:
        api_keys.revoke(key=key)
    Authenticator.objects.filter(user=user, type__in=authenticators).delete()
    end_sessions(user)
    account_reclaimed.send(sender=User, user=user)
    text = _("API keys, passkeys, connections and sessions made before no longer work.")
    messages.info(request, text)
