"""Credits that staff give and take, to one person or to many: all of them or none."""

import uuid
from collections.abc import Sequence

from django.db import transaction

from accounts import ledger
from accounts.errors import InsufficientBalance
from accounts.models import User
from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused


@transaction.atomic
def grant(*, clerk: Clerk, users: Sequence[User], amount: int, reason: str, once: uuid.UUID) -> None:
    """Give each of them `amount` credits.

    Raises:
        NotPermitted: the clerk may not. DoneBefore: the form was carried out already. LedgerError: a bad amount.
    """
    clerk.must("accounts.grant_credits")
    for user in _in_order(users):
        _write_down(clerk, "user.grant", user, amount, reason, once)
        ledger.grant(user=user, amount=amount, reason=reason, actor=clerk.user)


@transaction.atomic
def adjust(*, clerk: Clerk, users: Sequence[User], amount: int, reason: str, once: uuid.UUID) -> None:
    """Add `amount` credits to each of them, or take them away where it is less than 0.

    Raises:
        NotPermitted, DoneBefore: as `grant`. Refused: somebody has fewer free; nobody's balance changes then.
    """
    clerk.must("accounts.adjust_credits")
    for user in _in_order(users):
        _write_down(clerk, "user.adjust", user, amount, reason, once)
        try:
            ledger.adjust(user=user, amount=amount, reason=reason, actor=clerk.user)
        except InsufficientBalance as error:
            raise Refused(
                f"{user} has only {error.balance} credits free. Nobody's balance was changed."
            ) from error


def _in_order(users: Sequence[User]) -> list[User]:
    """Wallets are locked in one order, so that two acts on the same people do not wait for each other."""
    return sorted(users, key=lambda user: user.pk)


def _write_down(clerk: Clerk, act: str, user: User, amount: int, reason: str, once: uuid.UUID) -> None:
    account = ledger.lock_account(user=user)
    log.record(
        clerk=clerk,
        act=act,
        subject=user,
        reason=reason,
        before={"balance": account.balance},
        after={"balance": account.balance + amount},
        credits=amount,
        once=uuid.uuid5(once, str(user.pk)),
    )
