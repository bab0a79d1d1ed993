"""Operations of the staff on accounts: bans, limits of one user, credits given and taken."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django.forms import model_to_dict

from accounts import ledger
from accounts.models import Ban, CreditAccount, CreditTransaction, User, UserLimits
from accounts.staff.actor import Actor, NotPermitted, Refused, refuse
from accounts.staff.audit_log import Operation, operation, plain

# The fields of UserLimits; None: the same as for all users.
LIMITS = ("daily_clips", "concurrent_jobs", "cooldown_seconds", "price_factor")


@operation("accounts.ban_user", "user.ban")
def ban(op: Operation, user: User) -> None:
    """Sign `user` out of every channel for good; their live jobs are canceled (generation.receivers).

    Raises:
        NotPermitted: `user` is a member of the staff, and the actor may not manage staff.
        Refused: `user` is banned already, or is the actor.
    """
    user = _locked(op.actor, user)
    if user.pk == op.actor.user.pk:
        raise Refused("You cannot ban yourself.")
    refuse(why_not_ban(user))
    op.record(user, before={"active": True}, after={"active": False})
    Ban.objects.update_or_create(user=user, defaults={"reason": op.reason[:500], "by": op.actor.user})
    user.is_active = False
    user.save(update_fields=["is_active"])


@operation("accounts.ban_user", "user.unban")
def lift_ban(op: Operation, user: User) -> None:
    """Let `user` sign in again.

    Raises:
        NotPermitted: as `ban`. Refused: `user` is not banned, or closed the account.
    """
    user = _locked(op.actor, user)
    refuse(why_not_lift_ban(user))
    op.record(user, before={"active": False}, after={"active": True})
    Ban.objects.filter(user=user).delete()
    user.is_active = True
    user.save(update_fields=["is_active"])


def why_not_ban(user: User) -> str | None:
    return None if user.is_active else f"{user} is banned already."


def why_not_lift_ban(user: User) -> str | None:
    if user.is_active:
        return f"{user} is not banned."
    if user.anonymised_at is not None:
        return "This account was closed by its owner and cannot be opened again."
    return None


def _locked(actor: Actor, user: User) -> User:
    locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if locked.is_superuser and not actor.user.is_superuser:
        raise NotPermitted("Only superusers touch superusers.")
    if locked.is_staff:
        actor.must("accounts.manage_staff")
    return locked


@operation("accounts.limit_user", "user.limit")
def set_limits(op: Operation, user: User, /, **limits: int | Decimal | None) -> None:
    """Replace these limits of `user`, named as in LIMITS. Raises Refused when nothing changes."""
    row, _ = UserLimits.objects.select_for_update().get_or_create(user=user)
    before, after = plain(model_to_dict(row, fields=list(limits))), plain(limits)
    changed = [name for name in after if before[name] != after[name]]
    if not changed:
        raise Refused("These are the limits already.")
    op.record(
        user, before={name: before[name] for name in changed}, after={name: after[name] for name in changed}
    )
    UserLimits.objects.filter(pk=row.pk).update(**limits)


@operation("accounts.grant_credits", "user.grant")
def grant(op: Operation, users: Sequence[User], amount: int) -> None:
    """Give each of `users` `amount` credits: all of them or none. Raises LedgerError for a bad amount."""
    wallets = _recorded(op, users, amount)
    ledger.grant_each(accounts=wallets, amount=amount, reason=op.reason, actor=op.actor.user)


@operation("accounts.adjust_credits", "user.adjust")
def adjust(op: Operation, users: Sequence[User], amount: int) -> None:
    """Add `amount` credits to the balance of each of `users`, or take them away where it is less than 0.

    Raises:
        Refused: one of them has fewer credits free; no balance changes then.
    """
    wallets = _recorded(op, users, amount)
    for wallet in wallets:
        if wallet.balance + amount < 0:
            raise Refused(f"{wallet.user} has only {wallet.balance} credits free. No balance was changed.")
    ledger.adjust_each(accounts=wallets, amount=amount, reason=op.reason, actor=op.actor.user)


def _recorded(op: Operation, users: Sequence[User], amount: int) -> list[CreditAccount]:
    """Lock the wallets of `users`, and record the change of each."""
    wallets = ledger.lock_accounts(users=users)
    if not wallets:
        raise Refused("Please choose at least one user.")
    op.record_each(
        [
            (wallet.user, {"balance": wallet.balance}, {"balance": wallet.balance + amount})
            for wallet in wallets
        ],
        credits=amount,
    )
    return wallets


@operation("accounts.export_transactions", "transactions.export")
def export_transactions(op: Operation, latest: CreditTransaction, filters: dict[str, Any]) -> None:
    """Record that the transactions up to `latest` that these filters show are downloaded."""
    op.record(latest, after=filters)
