"""Who may not come in, and why. What is being made for somebody who is banned is canceled (generation.receivers)."""

import uuid

from django.db import transaction

from accounts.models import User
from accounts.staff import log
from accounts.staff.clerks import Clerk, NotPermitted
from accounts.staff.errors import Refused
from accounts.staff.models import Ban


@transaction.atomic
def ban(*, clerk: Clerk, user: User, reason: str, once: uuid.UUID | None = None) -> None:
    """From now on nobody comes in as `user`, by any door; credits held for them are free again.

    Raises:
        NotPermitted: the clerk may not, or not with a member of the staff. Refused: is banned, or is the clerk.
    """
    clerk.must("accounts.ban_user")
    user = _locked(clerk, user)
    if user.pk == clerk.user.pk:
        raise Refused("You cannot ban yourself.")
    if not user.is_active:
        raise Refused(f"{user} is banned already.")
    log.record(
        clerk=clerk,
        act="user.ban",
        subject=user,
        reason=reason,
        before={"active": True},
        after={"active": False},
        once=once,
    )
    Ban.objects.update_or_create(user=user, defaults={"reason": reason[:500], "by": clerk.user})
    user.is_active = False
    user.save(update_fields=["is_active"])


@transaction.atomic
def lift(*, clerk: Clerk, user: User, reason: str, once: uuid.UUID | None = None) -> None:
    """Let somebody back in.

    Raises:
        NotPermitted: as `ban`. Refused: nobody banned them, or the account was closed for good.
    """
    clerk.must("accounts.ban_user")
    user = _locked(clerk, user)
    if user.is_active:
        raise Refused(f"{user} is not banned.")
    if user.anonymised_at is not None:
        raise Refused("This account was closed by its owner, and nobody can sign in to it again.")
    log.record(
        clerk=clerk,
        act="user.unban",
        subject=user,
        reason=reason,
        before={"active": False},
        after={"active": True},
        once=once,
    )
    Ban.objects.filter(user=user).delete()
    user.is_active = True
    user.save(update_fields=["is_active"])


def _locked(clerk: Clerk, user: User) -> User:
    locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if locked.is_superuser and not clerk.user.is_superuser:
        raise NotPermitted("Only superusers touch superusers.")
    if locked.is_staff:
        clerk.must("accounts.manage_staff")
    return locked
