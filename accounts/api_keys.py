"""API keys: issued, verified, revoked. A key is shown once, and only its SHA-256 is stored."""

import hashlib
import secrets
import uuid
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from accounts.models import ApiKey, User
from accounts.staff import audit_log
from accounts.staff.actor import Actor

PREFIX = "vk_"
# Writing last_used_at on every request would lock the row on a busy key: a minute is precise enough.
LAST_USED_PRECISION = timedelta(minutes=1)


def issue(*, user: User, name: str = "default") -> tuple[ApiKey, str]:
    """Make a new key; return the row, and the key that is never shown again."""
    secret = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey.objects.create(user=user, name=name[:100], prefix=secret[:8], digest=digest(secret))
    return row, secret


def verify(secret: str) -> ApiKey | None:
    """Find the live key of an active owner. Looked up by digest, so timing tells nothing about a key."""
    live = ApiKey.objects.select_related("user").filter(revoked_at=None, user__is_active=True)
    key = live.filter(digest=digest(secret)).first()
    now = timezone.now()
    if key is not None and (key.last_used_at is None or now - key.last_used_at > LAST_USED_PRECISION):
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def revoke(*, key: ApiKey) -> None:
    """Refuse the key from now on. Revoking twice keeps the first time."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())


@transaction.atomic
def revoke_by_staff(*, actor: Actor, key: ApiKey, reason: str, once: uuid.UUID | None = None) -> None:
    """Revoke a user's key, with an entry in the audit log.

    Raises:
        NotPermitted: the actor may not. DoneBefore: the form was carried out already.
    """
    actor.must("accounts.change_apikey")
    audit_log.record(actor=actor, act="key.revoke", subject=key, reason=reason, once=once)
    revoke(key=key)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
