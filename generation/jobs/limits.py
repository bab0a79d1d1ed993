"""Limits and price of one user: those that staff agreed with them (`UserLimits`), else the service's own.

A submission reads what was agreed once and passes it on.
"""

import math
from datetime import timedelta
from decimal import Decimal

from django.conf import settings
from django.db.models import F, Q
from django.db.models.functions import Now

from accounts.models import User, UserLimits
from generation.errors import CooldownActive, DailyLimitReached, TooManyAtOnce, in_words
from generation.models import GenerationJob
from generation.nodes import CLIENTS

DAY = timedelta(days=1)
State = GenerationJob.State


def check(user: User, agreed: UserLimits) -> None:
    """Make sure that `user` may order one more now. Their wallet must be locked, or two requests find the same room.

    Raises:
        CooldownActive, TooManyAtOnce, DailyLimitReached: they may not.
    """
    if seconds := cooldown_left(user, agreed):
        raise CooldownActive(seconds=seconds)
    jobs = GenerationJob.objects.filter(user=user)
    most = agreed.concurrent_jobs
    if most is not None and jobs.filter(state__in=GenerationJob.LIVE).count() >= most:
        raise TooManyAtOnce(most=most)
    if agreed.daily_clips is not None:
        _check_day(user, agreed.daily_clips)


def cooldown_left(user: User, agreed: UserLimits | None = None) -> int:
    """Count the whole seconds until the user may submit again; 0 now.

    They run from the last job that did not fail; staff never wait.
    """
    if user.is_staff:
        return 0
    counted = GenerationJob.objects.filter(user=user).exclude(state=State.FAILED).order_by("-created_at")
    age: timedelta | None = counted.values_list(Now() - F("created_at"), flat=True).first()
    if age is None:
        return 0
    own = (agreed or UserLimits.of(user)).cooldown_seconds
    seconds: float = settings.VIDEO_COOLDOWN_SECONDS if own is None else own
    return max(0, math.ceil(seconds - age.total_seconds()))


def price_factor(user: User, agreed: UserLimits | None = None) -> Decimal:
    """Choose the factor of all prices for `user`: 0 for staff while STAFF_GENERATE_FREE is on."""
    if user.is_staff and settings.STAFF_GENERATE_FREE:
        return Decimal(0)
    own = (agreed or UserLimits.of(user)).price_factor
    return Decimal(1) if own is None else own


def _check_day(user: User, most: int) -> None:
    """Videos that failed do not count, nor those canceled before a GPU had begun with them."""
    counted = GenerationJob.objects.filter(user=user, created_at__gt=Now() - DAY).exclude(state=State.FAILED)
    within_a_request = [client.protocol for client in CLIENTS if not client.background]  # no step is heard
    begun = Q(step__gt=0) | Q(current_attempt__stopped_at_step__gt=0)
    begun |= Q(current_attempt__protocol__in=within_a_request, current_attempt__posted_at__isnull=False)
    counted = counted.filter(~Q(state=State.CANCELED) | begun).order_by("-created_at")
    ages = list(counted.values_list(Now() - F("created_at"), flat=True)[:most])
    if len(ages) >= most:
        left = DAY - (ages[-1] if ages else timedelta())
        seconds = max(1, math.ceil(left.total_seconds()))
        raise DailyLimitReached(most=most, wait=in_words(seconds), seconds=seconds)
