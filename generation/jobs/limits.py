"""What one person may order at once and in a day, and at what price: `UserLimits`, held against every submit.

Where staff agreed nothing with somebody, nothing but the service's own cooldown and prices holds.
(`admission.cooldown_left` reads the cooldown that was agreed with somebody, together with when their last video was.)
"""

import math
from datetime import timedelta
from decimal import Decimal

from django.db.models import F
from django.db.models.functions import Now

from accounts.models import User, UserLimits
from accounts.staff import operations
from generation.errors import DailyLimitReached, TooManyAtOnce
from generation.models import GenerationJob

DAY = timedelta(days=1)
State = GenerationJob.State


def check(user: User) -> None:
    """Whether `user` may order one more now. Their wallet's row must be locked, so that two requests do not both
    find room for one.

    Raises:
        TooManyAtOnce, DailyLimitReached: they may not.
    """
    agreed = operations.limits_of(user)
    _check_concurrent(user, agreed)
    _check_day(user, agreed)


def price_factor(user: User) -> Decimal:
    """What prices are multiplied by for `user`."""
    agreed = operations.limits_of(user).price_factor
    return Decimal(1) if agreed is None else agreed


def _check_concurrent(user: User, agreed: UserLimits) -> None:
    most = agreed.concurrent_jobs
    if most is None:
        return
    if GenerationJob.objects.filter(user=user, state__in=GenerationJob.LIVE).count() >= most:
        raise TooManyAtOnce(most=most)


def _check_day(user: User, agreed: UserLimits) -> None:
    """Videos that failed or were canceled do not count: nothing came of them."""
    most = agreed.daily_clips
    if most is None:
        return
    counted = GenerationJob.objects.filter(user=user, created_at__gt=Now() - DAY)
    counted = counted.exclude(state__in=[State.FAILED, State.CANCELED])
    ages = list(
        counted.annotate(age=Now() - F("created_at"))
        .order_by("-created_at")
        .values_list("age", flat=True)[:most]
    )
    if len(ages) >= most:
        seconds = (DAY - ages[-1]).total_seconds() if ages else DAY.total_seconds()
        raise DailyLimitReached(most=most, seconds=max(1, math.ceil(seconds)))
