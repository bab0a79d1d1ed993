"""One-time tokens for links: 192 random bits of which only a SHA-256 is kept, and the links that sign in by one.

Opening a sign-in link does nothing yet, so that a preview of it burns nothing: pressing the button there does.
"""

import hashlib
import re
import secrets
from datetime import timedelta

from django.db.models.functions import Now
from django.utils.translation import gettext as _

from accounts.models import User
from telegram_bot.errors import Refusal
from telegram_bot.models import LoginLink, TelegramAccount

# The form that Telegram lets stand behind `?start=`, and a button carry.
FORM = re.compile(r"[\w-]{32}", re.ASCII)
LIFE = timedelta(minutes=5)
KEEP = timedelta(days=30)


def new() -> tuple[str, str]:
    """Draw a token; returns it and its digest."""
    token = secrets.token_urlsafe(24)
    return token, digest(token)


def digest(token: str) -> str:
    """Return the digest to look for in the table; of anything that is no token, one that is never there."""
    return hashlib.sha256(token.encode()).hexdigest() if FORM.fullmatch(token) else ""


def issue(*, account: TelegramAccount) -> str:
    """Make a token that signs this person in once. Earlier ones that were not used do not work any more.

    Raises:
        Refusal: the account is banned, or one of the staff.
    """
    user = account.user
    if not user.is_active:
        raise Refusal(_("This account is not active."))
    if user.is_staff or user.is_superuser:
        raise Refusal(_("Accounts of the staff are signed in to on the web only, with their password."))
    LoginLink.objects.filter(account=account, used_at=None).delete()
    token, hashed = new()
    LoginLink.objects.create(account=account, user=user, digest=hashed, expires_at=Now() + LIFE)
    return token


def find(token: str) -> LoginLink | None:
    """Find the link behind a token that still works, without a change to it."""
    rows = LoginLink.objects.select_related("user", "account__user").filter(
        digest=digest(token),
        used_at=None,
        expires_at__gt=Now(),
        user__is_active=True,
        user__is_staff=False,
    )
    link = rows.first()
    # The account may belong to another user since.
    return link if link is not None and link.account.user_id == link.user_id else None


def redeem(token: str) -> User | None:
    """Use up a token; returns the user to sign in, None the second time and when it is too late."""
    link = find(token)
    if link is None or not LoginLink.objects.filter(pk=link.pk, used_at=None).update(used_at=Now()):
        return None
    return link.user


def prune() -> int:
    """Delete links that ran out a month ago."""
    return LoginLink.objects.filter(expires_at__lt=Now() - KEEP).delete()[0]
