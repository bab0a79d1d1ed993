"""The limits of one person: how much, how often, at what price."""

import uuid
from decimal import Decimal
from typing import TypedDict

from django.db import transaction
from django.forms import model_to_dict

from accounts.models import User
from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from accounts.staff.models import UserLimits


class Terms(TypedDict):
    """None: as for everybody."""

    daily_clips: int | None
    concurrent_jobs: int | None
    cooldown_seconds: int | None
    price_factor: Decimal | None


@transaction.atomic
def agree(*, clerk: Clerk, user: User, terms: Terms, reason: str, once: uuid.UUID | None = None) -> None:
    """Set all limits of `user` to these.

    Raises:
        NotPermitted: the clerk may not. Refused: they are these already.
    """
    clerk.must("accounts.limit_user")
    row, _ = UserLimits.objects.select_for_update().get_or_create(user=user)
    before, after = log.changed(model_to_dict(row, fields=list(terms)), dict(terms))
    if not after:
        raise Refused("These are the limits already.")
    log.record(
        clerk=clerk, act="user.limit", subject=user, reason=reason, before=before, after=after, once=once
    )
    UserLimits.objects.filter(pk=row.pk).update(**terms)


def of(user: User) -> UserLimits:
    """What holds for `user`, read afresh; where nothing was agreed, a row with nothing in it that is not stored."""
    return UserLimits.objects.filter(user=user).first() or UserLimits(user=user)
