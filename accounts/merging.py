"""Two wallets of one person become one, and two again when staff say that it was a mistake.

Nothing is rewritten: credits move by `transfer` entries, and an undone merge is the same moved back. The caller makes
sure that it is one person, and that no video is being made for either account.
"""

from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from accounts import ledger, welcome
from accounts.ledger import LedgerError
from accounts.models import CreditAccount, CreditTransaction, User, WalletMerge

Kind = CreditTransaction.Kind


class CreditsAreHeld(LedgerError):
    """Credits are held for a video that is being made. Wait for it, or cancel it."""


class CannotUndo(LedgerError):
    """This merge cannot be undone."""


def plan(*, source: CreditAccount, target: CreditAccount) -> WalletMerge:
    """Plan the merge of the two as they are now; the row is not saved."""
    unspent = unspent_welcome(source)
    stays = unspent if welcome.has_had(target) else 0
    return WalletMerge(
        source=source,
        target=target,
        moved=source.posted - stays,
        stayed=stays,
        brought_welcome=not stays and unspent > 0,
    )


@transaction.atomic
def merge(*, source: User, target: User, reason: str, actor: User) -> WalletMerge:
    """Move the free credits of `source` to `target`.

    Unspent sign-up credits stay where they are if the target has had its own: each person has them once.

    Raises:
        CreditsAreHeld: in either wallet.
    """
    giver, taker = ledger.lock_both(source, target)
    if giver.held or taker.held:
        raise CreditsAreHeld()
    row = plan(source=giver, target=taker)
    row.after_entry = CreditTransaction.objects.order_by("-id").values_list("pk", flat=True).first() or 0
    row.actor, row.reason = actor, reason[:500]
    row.save()
    if row.moved:
        ledger.transfer(source=source, target=target, amount=row.moved, reason=reason, actor=actor)
    return row


@transaction.atomic
def undo(*, merge: WalletMerge, reason: str, actor: User) -> WalletMerge:
    """Move back all that moved between the two wallets since, refunds that followed the credits included.

    Raises:
        CannotUndo: it was undone before, or the credits moved on by a newer merge.
        InsufficientBalance: some of the credits were spent since or are held.
    """
    one, other = merge.source.user, merge.target.user
    ledger.lock_both(one, other)
    row = WalletMerge.objects.select_for_update(of=("self",)).get(pk=merge.pk)
    if row.undone_at is not None:
        raise CannotUndo("This merge was undone before.")
    pair = [row.source_id, row.target_id]
    touching = Q(source__in=pair) | Q(target=row.source_id)
    if WalletMerge.objects.filter(touching, pk__gt=row.pk, undone_at=None).exists():
        raise CannotUndo("One of the two accounts was merged again since: undo that first.")
    back = net_moved(row)
    if back:
        giver, taker = (other, one) if back > 0 else (one, other)
        ledger.transfer(source=giver, target=taker, amount=abs(back), reason=reason, actor=actor)
    row.undone_at, row.undone_by, row.undone_reason = timezone.now(), actor, reason[:500]
    row.save(update_fields=["undone_at", "undone_by", "undone_reason"])
    return row


def same_person(*users: User | None) -> set[int]:
    """Collect the ids of these users and of all accounts that were ever merged with theirs, step by step."""
    found, new = set[int](), {user.pk for user in users if user}
    while new:
        found |= new
        merges = WalletMerge.objects.filter(Q(source__user__in=new) | Q(target__user__in=new))
        new = {pk for pair in merges.values_list("source__user", "target__user") for pk in pair} - found
    return found


def net_moved(row: WalletMerge) -> int:
    """Sum up the credits that went from the source to the target since the merge, less those that came back."""
    entries = CreditTransaction.objects.filter(
        account=row.source_id, counterpart=row.target_id, kind=Kind.TRANSFER, pk__gt=row.after_entry
    )
    return -_sum(entries)


def unspent_welcome(account: CreditAccount) -> int:
    """Count the sign-up credits left in a wallet: they count as spent first, and are never more than is in it."""
    if account.merges_away.filter(brought_welcome=True, undone_at=None).exists():
        return 0
    entries = account.transactions
    spent = entries.filter(kind__in=[Kind.CAPTURE, Kind.REFUND])
    left = _sum(welcome.granted(account)) + min(0, _sum(spent))
    return max(0, min(account.posted, left))


def _sum(entries: "QuerySet[CreditTransaction]") -> int:
    return entries.aggregate(total=Sum("posted_delta"))["total"] or 0
