"""Operations of the staff on accounts: bans, limits of one user, credits given and taken."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.forms import model_to_dict
from django.utils import timezone

from accounts import ledger, merging
from accounts.models import Approval, Ban, CreditAccount, CreditTransaction, User, UserLimits
from accounts.staff import audit_log
from accounts.staff.actor import Actor, NeedsApproval, NotPermitted, Refused, refuse
from accounts.staff.audit_log import Operation, operation, plain

# The fields of UserLimits; None: the same as for all users.
GIFTS = ("user.grant", "user.adjust")
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
    if not Ban.objects.filter(user=user).exists():
        return "This account is not banned: it sleeps because it was joined with another one."
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
    """Replace these limits of `user`, named as in LIMITS.

    Raises:
        Refused: nothing changes, `user` is the actor, or the actor may not change a price factor.
    """
    op.begin_gift([user.pk])
    row, _ = UserLimits.objects.select_for_update().get_or_create(user=user)
    before, after = plain(model_to_dict(row, fields=list(limits))), plain(limits)
    changed = [name for name in after if before[name] != after[name]]
    if not changed:
        raise Refused("These are the limits already.")
    if "price_factor" in changed and not op.actor.may("accounts.set_price_factor"):
        raise Refused("Only finance and owners change the price factor.")
    op.record(
        user, before={name: before[name] for name in changed}, after={name: after[name] for name in changed}
    )
    UserLimits.objects.filter(pk=row.pk).update(**limits)


@operation("accounts.grant_credits", "user.grant")
def grant(op: Operation, users: Sequence[User | int], amount: int) -> None:
    """Give each of `users`, or of those with these keys, `amount` credits: all of them or none.

    Raises:
        LedgerError: a bad amount. Refused, NeedsApproval: it is more than the actor may give, or may give alone.
    """
    wallets = _recorded(op, users, amount)
    ledger.grant_each(accounts=wallets, amount=amount, reason=op.reason, actor=op.actor.user)


@operation("accounts.adjust_credits", "user.adjust")
def adjust(op: Operation, users: Sequence[User | int], amount: int) -> None:
    """Add `amount` credits to the balance of each of `users`, or take them away where it is less than 0.

    Raises:
        Refused: one of them has fewer credits free; no balance changes then. NeedsApproval: as `grant`.
    """
    wallets = _recorded(op, users, amount)
    for wallet in wallets:
        if wallet.balance + amount < 0:
            raise Refused(f"{wallet.user} has only {wallet.balance} credits free. No balance was changed.")
    ledger.adjust_each(accounts=wallets, amount=amount, reason=op.reason, actor=op.actor.user)


def _recorded(op: Operation, users: Sequence[User | int], amount: int) -> list[CreditAccount]:
    """Lock the wallets of `users`, and record the change of each."""
    wallets = ledger.lock_accounts(users=users)
    if not wallets:
        raise Refused("Please choose at least one user.")
    if amount > 0:
        _check_gift(op, [wallet.user for wallet in wallets], amount)
    op.record_each(
        [
            (wallet.user, {"balance": wallet.balance}, {"balance": wallet.balance + amount})
            for wallet in wallets
        ],
        credits=amount,
    )
    return wallets


def _check_gift(op: Operation, users: Sequence[User], amount: int) -> None:
    keys, names, total = [user.pk for user in users], ", ".join(map(str, users)), amount * len(users)
    op.begin_gift(keys)
    left = settings.GRANT_DAILY_CREDITS - audit_log.given_today(op.actor.user, GIFTS)
    if total > left:
        raise Refused(f"These are {total} credits: {op.actor.user} may give {max(0, left)} more in 24 hours.")
    needed = {"credits": total, "arguments": {"users": keys, "amount": amount}}
    needs = NeedsApproval(f"{amount} credits to each of: {names}", **needed)
    op.check_alone(needs, GIFTS, settings.GRANT_APPROVAL_CREDITS)


@operation("accounts.view_approval", "approval.settle")
def settle(op: Operation, approval: Approval, *, approved: bool) -> None:
    """Carry out what a colleague asked for, or refuse it. Raises what that operation raises, and Refused."""
    row = Approval.objects.select_for_update(of=("self",)).select_related("actor").get(pk=approval.pk)
    op.actor.must(row.permission)
    refuse(why_not_settle(row))
    if op.actor.user.pk in merging.same_person(row.actor):
        raise Refused("You have asked for this yourself: a colleague has to decide.")
    op.record(row, after={"approved": approved, "what": row.summary})
    Approval.objects.filter(pk=row.pk).update(approved=approved)
    if approved:
        audit_log.carry_out(row, op.actor)


def why_not_settle(approval: Approval) -> str | None:
    if approval.approved is not None:
        return "This is settled already."
    expired = timezone.now() - approval.created_at > Approval.VALID
    return "This was asked for more than a week ago: please ask anew." if expired else None


@operation("accounts.export_transactions", "transactions.export")
def export_transactions(op: Operation, latest: CreditTransaction, filters: dict[str, Any]) -> None:
    """Record that the transactions up to `latest` that these filters show are downloaded."""
    op.record(latest, after=filters)
