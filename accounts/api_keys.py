"""API keys: issued, verified, revoked. A key is shown once, and only its SHA-256 is stored."""

import hashlib
import secrets
import uuid
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import ApiKey, User
from accounts.staff.actor import refuse
from accounts.staff.audit_log import Operation, operation

PREFIX = "vk_"
# Writing last_used_at on every request would lock the row on a busy key: a minute is precise enough.
LAST_USED_PRECISION = timedelta(minutes=1)


class IssuedBefore(Exception):
    """The form that asks for this key has made one already; that key cannot be shown again."""


def issue(*, user: User, name: str = "default", key_id: uuid.UUID | None = None) -> tuple[ApiKey, str]:
    """Make a new key; return the row, and the key that is never shown again.

    Raises:
        IssuedBefore: there is a key with this id, so the request came twice.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(user=user, name=name[:100], prefix=secret[:8], digest=digest(secret))
    row.id = key_id or row.id
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise IssuedBefore from None
    return row, secret


def verify(secret: str) -> ApiKey | None:
    """Find a live key, whose owner may be banned. Looked up by digest, so timing tells nothing about a key."""
    live = ApiKey.objects.select_related("user").filter(revoked_at=None)
    key = live.filter(digest=digest(secret)).first()
    now = timezone.now()
    if key is None or not key.user.is_active:
        return key
    if key.last_used_at is None or now - key.last_used_at > LAST_USED_PRECISION:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def revoke(*, key: ApiKey) -> None:
    """Refuse the key from now on. Revoking twice keeps the first time."""
    ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now())


@operation("accounts.change_apikey", "key.revoke")
def revoke_by_staff(op: Operation, key: ApiKey) -> None:
    """Refuse the key from now on. Raises Refused when it was revoked before."""
    key = ApiKey.objects.select_for_update().get(pk=key.pk)
    refuse(why_not_revoke(key))
    op.record(key)
    revoke(key=key)


def why_not_revoke(key: ApiKey) -> str | None:
    return None if key.revoked_at is None else "This key was revoked before."


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
