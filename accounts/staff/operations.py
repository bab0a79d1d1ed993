"""Credits that staff give and take, to one person or to many: all of them or none."""

import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import TypedDict

from django.db import transaction
from django.forms import model_to_dict

from accounts import ledger
from accounts.ledger import InsufficientBalance
from accounts.models import Ban, User, UserLimits
from accounts.staff import audit_log
from accounts.staff.actor import Actor, NotPermitted, Refused


@transaction.atomic
def ban(*, actor: Actor, user: User, reason: str, once: uuid.UUID | None = None) -> None:
    """From now on nobody comes in as `user`, by any door; credits held for them are free again.

    Raises:
        NotPermitted: the actor may not, or not with a member of the staff. Refused: is banned, or is the actor.
    """
    actor.must("accounts.ban_user")
    user = _locked(actor, user)
    if user.pk == actor.user.pk:
        raise Refused("You cannot ban yourself.")
    if not user.is_active:
        raise Refused(f"{user} is banned already.")
    audit_log.record(
        actor=actor,
        act="user.ban",
        subject=user,
        reason=reason,
        before={"active": True},
        after={"active": False},
        once=once,
    )
    Ban.objects.update_or_create(user=user, defaults={"reason": reason[:500], "by": actor.user})
    user.is_active = False
    user.save(update_fields=["is_active"])


@transaction.atomic
def lift(*, actor: Actor, user: User, reason: str, once: uuid.UUID | None = None) -> None:
    """Let somebody back in.

    Raises:
        NotPermitted: as `ban`. Refused: nobody banned them, or the account was closed for good.
    """
    actor.must("accounts.ban_user")
    user = _locked(actor, user)
    if user.is_active:
        raise Refused(f"{user} is not banned.")
    if user.anonymised_at is not None:
        raise Refused("This account was closed by its owner, and nobody can sign in to it again.")
    audit_log.record(
        actor=actor,
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


def _locked(actor: Actor, user: User) -> User:
    locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if locked.is_superuser and not actor.user.is_superuser:
        raise NotPermitted("Only superusers touch superusers.")
    if locked.is_staff:
        actor.must("accounts.manage_staff")
    return locked


# The limits of one person: how much, how often, at what price.


class Terms(TypedDict):
    """None: as for everybody."""

    daily_clips: int | None
    concurrent_jobs: int | None
    cooldown_seconds: int | None
    price_factor: Decimal | None


@transaction.atomic
def agree(*, actor: Actor, user: User, terms: Terms, reason: str, once: uuid.UUID | None = None) -> None:
    """Set all limits of `user` to these.

    Raises:
        NotPermitted: the actor may not. Refused: they are these already.
    """
    actor.must("accounts.limit_user")
    row, _ = UserLimits.objects.select_for_update().get_or_create(user=user)
    before, after = audit_log.changed(model_to_dict(row, fields=list(terms)), dict(terms))
    if not after:
        raise Refused("These are the limits already.")
    audit_log.record(
        actor=actor, act="user.limit", subject=user, reason=reason, before=before, after=after, once=once
    )
    UserLimits.objects.filter(pk=row.pk).update(**terms)


# Who may not come in, and why. What is being made for somebody who is banned is canceled (generation.receivers).


@transaction.atomic
def grant(*, actor: Actor, users: Sequence[User], amount: int, reason: str, once: uuid.UUID) -> None:
    """Give each of them `amount` credits.

    Raises:
        NotPermitted: the actor may not. DoneBefore: the form was carried out already. LedgerError: a bad amount.
    """
    actor.must("accounts.grant_credits")
    for user in _in_order(users):
        _write_down(actor, "user.grant", user, amount, reason, once)
        ledger.grant(user=user, amount=amount, reason=reason, actor=actor.user)


@transaction.atomic
def adjust(*, actor: Actor, users: Sequence[User], amount: int, reason: str, once: uuid.UUID) -> None:
    """Add `amount` credits to each of them, or take them away where it is less than 0.

    Raises:
        NotPermitted, DoneBefore: as `grant`. Refused: somebody has fewer free; nobody's balance changes then.
    """
    actor.must("accounts.adjust_credits")
    for user in _in_order(users):
        _write_down(actor, "user.adjust", user, amount, reason, once)
        try:
            ledger.adjust(user=user, amount=amount, reason=reason, actor=actor.user)
        except InsufficientBalance as error:
            raise Refused(
                f"{user} has only {error.balance} credits free. Nobody's balance was changed."
            ) from error


def _in_order(users: Sequence[User]) -> list[User]:
    """Wallets are locked in one order, so that two acts on the same people do not wait for each other."""
    return sorted(users, key=lambda user: user.pk)


def _write_down(actor: Actor, act: str, user: User, amount: int, reason: str, once: uuid.UUID) -> None:
    account = ledger.lock_account(user=user)
    audit_log.record(
        actor=actor,
        act=act,
        subject=user,
        reason=reason,
        before={"balance": account.balance},
        after={"balance": account.balance + amount},
        credits=amount,
        once=uuid.uuid5(once, str(user.pk)),
    )
