"""How much one clerk may refund: a limit for each act alone would be none, for it could be taken again and again."""

from datetime import timedelta

from django.conf import settings
from django.db.models import Sum
from django.db.models.functions import Now

from accounts.models import User
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from accounts.staff.models import StaffAct

ACTS = ("job.refund", "batch.refund")
WINDOW = timedelta(days=1)


class BeyondLimit(Refused):
    """It is more than the clerk may refund."""


def left(clerk: Clerk) -> int | None:
    """Credits that the clerk may still refund; None: any number."""
    if clerk.may("generation.refund_any_amount"):
        return None
    acts = StaffAct.objects.filter(actor=clerk.user, act__in=ACTS, at__gt=Now() - WINDOW)
    spent = acts.aggregate(total=Sum("credits"))["total"] or 0
    return max(0, settings.REFUND_LIMIT_CREDITS - int(spent))


def hold(clerk: Clerk, credits: int) -> None:  # noqa: A002  (credits are credits)
    """Make sure that the clerk may refund so many. Must be called inside the transaction that refunds them: another
    refund of the same clerk waits for its end.

    Raises:
        BeyondLimit: they may not; the message says who may.
    """
    User.objects.select_for_update(no_key=True).get(pk=clerk.user.pk)
    rest = left(clerk)
    if rest is not None and credits > rest:
        raise BeyondLimit(
            f"These are {credits} credits. You may refund {settings.REFUND_LIMIT_CREDITS} in 24 hours and have "
            f"{rest} of them left: please ask somebody with the role finance or owner."
        )
