"""Ways from a chat to the web: a one-time link into one's account, and a signed link to one video.

Opening the sign-in link does nothing yet, so that a preview of it burns nothing: pressing the button there does.
"""

import hashlib
import re
import secrets
from datetime import timedelta

from django.db.models.functions import Now
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from accounts.models import User
from telegram_bot.models import LoginLink, TelegramAccount

# What Telegram lets stand behind `?start=`, and a button carry.
FORM = re.compile(r"[\w-]{32}", re.ASCII)


def new() -> tuple[str, str]:
    """A token and its digest."""
    token = secrets.token_urlsafe(24)
    return token, digest(token)


def digest(token: str) -> str:
    """What to look for in the table; of what is no token, something that is never there."""
    return hashlib.sha256(token.encode()).hexdigest() if FORM.fullmatch(token) else ""


# One-time tokens for links: 192 random bits that need no quoting anywhere, of which only a SHA-256 is kept.


LIFE = timedelta(minutes=5)
KEEP = timedelta(days=30)


class CannotSignIn(Exception):
    """No link for this account."""

    words: Promise | str = ""

    def __init__(self) -> None:
        super().__init__(str(self.words))


class StaffSignInOnTheWeb(CannotSignIn):
    words = gettext_lazy("Accounts of the staff are signed in to on the web only, with their password.")


class NotActive(CannotSignIn):
    words = gettext_lazy("This account is not active.")


def issue(*, account: TelegramAccount) -> str:
    """A token that signs this person in once. Earlier ones that were not used do not work any more.

    Raises:
        CannotSignIn
    """
    user = account.user
    if not user.is_active:
        raise NotActive
    if user.is_staff or user.is_superuser:
        raise StaffSignInOnTheWeb
    LoginLink.objects.filter(account=account, used_at=None).delete()
    token, digest = new()
    LoginLink.objects.create(account=account, user=user, digest=digest, expires_at=Now() + LIFE)
    return token


def find(token: str) -> LoginLink | None:
    """The link behind a token that still works; finding it changes nothing."""
    # Whose account it is may have changed since: then the link is nobody's.
    rows = LoginLink.objects.select_related("user", "account__user").filter(
        digest=digest(token),
        used_at=None,
        expires_at__gt=Now(),
        user__is_active=True,
        user__is_staff=False,
    )
    link = rows.first()
    return link if link is not None and link.account.user_id == link.user_id else None


def redeem(token: str) -> User | None:
    """Whom to sign in; None the second time, and when it is too late."""
    link = find(token)
    if link is None or not LoginLink.objects.filter(pk=link.pk, used_at=None).update(used_at=Now()):
        return None
    return link.user


def prune() -> int:
    """Forget links of long ago."""
    return LoginLink.objects.filter(expires_at__lt=Now() - KEEP).delete()[0]
