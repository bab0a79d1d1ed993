"""Where credits are now that moved when two wallets became one."""

from accounts.models import CreditAccount, CreditTransaction, WalletMerge


def holder_of(entry: CreditTransaction) -> int:
    """The id of the wallet that has what this entry moved: its own, or the one it was merged into since.

    After a merge is over (the two were parted), what is entered into the old wallet belongs to it again, so it is not
    the wallet that tells but the entry.
    """
    merges = WalletMerge.objects.filter(undone_at=None).order_by("pk")
    holder: int = entry.account_id
    merge = merges.filter(source=holder, after_entry__gte=entry.pk).first()
    while merge is not None:
        holder = merge.target_id
        merge = merges.filter(source=holder, pk__gt=merge.pk).first()
    return holder


def lock_with_holder(entry: CreditTransaction) -> tuple[CreditAccount, CreditAccount]:
    """The entry's wallet and the one that has its credits now, both locked; often they are the same one.

    A merge locks its wallets, so the answer stays true until the transaction ends.
    """
    while True:
        holder = holder_of(entry)
        locked = lock_wallets(entry.account_id, holder)
        if holder_of(entry) == holder:
            return locked[entry.account_id], locked[holder]


def lock_wallets(*ids: int) -> dict[int, CreditAccount]:
    """Wallets by id, locked in an order that two callers cannot block each other by."""
    rows = CreditAccount.objects.select_for_update(of=("self",)).filter(pk__in=ids).order_by("pk")
    return {row.pk: row for row in rows}
