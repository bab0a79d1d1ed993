"""Every movement of credits. Two-phase, as TigerBeetle has it: reserve, then capture or release exactly once.

All functions are atomic and take the wallet's row lock first, so two of them on one wallet run one after the other.
Amounts are whole credits. Repeating a resolution is harmless: the entry that exists is returned. The database holds the
same rules in constraints and triggers (see the migrations), so a mistake here is an IntegrityError and never a wrong
balance.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Required, TypedDict, Unpack

from django.db import transaction
from django.db.models import Exists, OuterRef

from accounts.models import CreditAccount, CreditTransaction, User, WalletMerge

Kind = CreditTransaction.Kind
# A larger grant is a slip of the hand.
MAX_GRANT = 1_000_000_000


class LedgerError(Exception):
    """The ledger refused this entry."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class InsufficientBalance(LedgerError):
    """Not enough credits."""

    def __init__(self, *, needed: int, balance: int) -> None:
        super().__init__(f"{needed} credits are needed, {balance} are free.")
        self.needed = needed
        self.balance = balance


class NotFound(LedgerError):
    """There is no such entry to resolve."""


class AlreadyResolved(LedgerError):
    """This entry was resolved before, the other way."""


class InvalidAmount(LedgerError):
    """The amount must be a whole number of credits of the right sign."""


def open_account(*, user: User) -> CreditAccount:
    """Return the user's wallet, opened empty when there is none yet."""
    return CreditAccount.objects.get_or_create(user=user)[0]


def lock_account(*, user: User) -> CreditAccount:
    """Lock the user's wallet until the transaction ends. Must be called inside one."""
    return CreditAccount.objects.select_for_update().get(user=user)


def lock_accounts(*, users: Iterable[User | int]) -> list[CreditAccount]:
    """Lock the wallets of these users until the transaction ends, in one order: two callers do not block each other."""
    rows = CreditAccount.objects.select_for_update(of=("self",)).filter(user__in=users)
    return list(rows.select_related("user").order_by("pk"))


@transaction.atomic
def grant(
    *, user: User, amount: int, reason: str, actor: User | None = None, external_id: str | None = None
) -> CreditTransaction:
    """Give credits. With `external_id` the same grant is made once only.

    Raises:
        InvalidAmount: the amount is not positive, or more than MAX_GRANT.
    """
    _check_grant(amount)
    account = lock_account(user=user)
    if external_id and (earlier := _find(kind=Kind.GRANT, external_id=external_id)):
        return earlier
    return _enter(account, Kind.GRANT, posted=amount, reason=reason, actor=actor, external_id=external_id)


def grant_each(*, accounts: Sequence[CreditAccount], amount: int, reason: str, actor: User) -> None:
    """Give credits to each of these locked wallets, in one query. Raises InvalidAmount, as `grant`."""
    _check_grant(amount)
    _insert([_entry(account, Kind.GRANT, posted=amount, reason=reason, actor=actor) for account in accounts])


@transaction.atomic
def purchase(*, user: User, amount: int, external_id: str, reason: str) -> CreditTransaction:
    """Credit a payment, once for its own id (`external_id`)."""
    _require_positive(amount)
    account = lock_account(user=user)
    if earlier := _find(kind=Kind.PURCHASE, external_id=external_id):
        return earlier
    return _enter(account, Kind.PURCHASE, posted=amount, reason=reason, actor=user, external_id=external_id)


@transaction.atomic
def purchase_refund(
    *, purchase: CreditTransaction, reason: str, actor: User | None = None
) -> CreditTransaction:
    """Take back all credits of a purchase whose money goes back; never more than the free balance.

    Where the wallet was merged into another one, they come back from there first. A refund that stands is returned;
    one that was taken back by `compensate` may be followed by another.

    Raises:
        InsufficientBalance: some of them were spent or are held.
    """
    path = _lock_path(purchase)
    if earlier := standing_refund(purchase):
        return earlier
    amount = purchase.posted_delta
    _require_free(path[-1], amount)
    _move_along(path[::-1], amount, reason=reason, actor=actor)
    return _enter(
        path[0], Kind.PURCHASE_REFUND, posted=-amount, resolves=purchase, reason=reason, actor=actor
    )


def standing_refund(purchase: CreditTransaction) -> CreditTransaction | None:
    """Find the refund of a purchase that was not taken back."""
    refunds = CreditTransaction.objects.filter(kind=Kind.PURCHASE_REFUND, resolves=purchase)
    return refunds.filter(resolutions=None).first()


@transaction.atomic
def compensate(*, refund: CreditTransaction, reason: str, actor: User | None = None) -> CreditTransaction:
    """Give the credits of a purchase refund back, once, because the money did not go back after all."""
    assert refund.resolves is not None
    # The refund may have been taken from the wallet that this one was merged into.
    path = _lock_path(refund.resolves)
    if earlier := _find(kind=Kind.ADJUST, resolves=refund):
        return earlier
    amount = -refund.posted_delta
    entry = _enter(path[0], Kind.ADJUST, posted=amount, resolves=refund, reason=reason, actor=actor)
    _move_along(path, amount, reason=reason, actor=actor)
    return entry


@transaction.atomic
def reserve(*, user: User, amount: int, reference: uuid.UUID, reason: str) -> CreditTransaction:
    """Hold credits for a job; 0 is a valid hold, so that a free job has one too.

    Raises:
        InsufficientBalance: fewer are free.
    """
    return reserve_each([(lock_account(user=user), reference, amount)], reason=reason)[0]


def reserve_each(
    holds: Iterable[tuple[CreditAccount, uuid.UUID, int]], *, reason: str
) -> list[CreditTransaction]:
    """Hold credits for jobs, each in a locked wallet for a reference, in one query. Raises as `reserve`."""
    entries = []
    for account, reference, amount in holds:
        if amount < 0:
            raise InvalidAmount()
        _require_free(account, amount)
        owner = account.user_id
        entries.append(
            _entry(account, Kind.RESERVE, held=amount, reference=reference, reason=reason, actor_id=owner)
        )
    return _insert(entries)


def capture(*, reference: uuid.UUID, reason: str, amount: int | None = None) -> CreditTransaction:
    """Charge what was held for a job, or `amount` of it and give back the rest.

    Raises:
        NotFound: nothing was held. AlreadyResolved: it was released before.
    """
    return _resolve_each([reference], Kind.CAPTURE, reason=reason, amount=amount)[0]


def release(*, reference: uuid.UUID, reason: str, actor: User | None = None) -> CreditTransaction:
    """Give back what was held for a job.

    Raises:
        NotFound: nothing was held. AlreadyResolved: it was captured before.
    """
    return release_each(references=[reference], reason=reason, actor=actor)[0]


def release_each(
    *, references: Collection[uuid.UUID], reason: str, actor: User | None = None
) -> list[CreditTransaction]:
    """Give back what was held for several jobs, in the queries of one: for all or none. Raises as `release`."""
    return _resolve_each(references, Kind.RELEASE, reason=reason, actor=actor)


@transaction.atomic
def refund(*, reference: uuid.UUID, reason: str, actor: User | None = None) -> CreditTransaction:
    """Give back, whole and once, what a job captured. A second call returns the first refund.

    Where the wallet was merged into another one since, the credits go on to that one.

    Raises:
        NotFound: the job captured nothing.
    """
    captured = CreditTransaction.objects.filter(
        kind=Kind.CAPTURE, reference=reference, posted_delta__lt=0
    ).first()
    if captured is None:
        raise NotFound("This job was not charged, so there is nothing to refund.")
    path = _lock_path(captured)
    if earlier := _find(kind=Kind.REFUND, resolves=captured):
        return earlier
    amount = -captured.posted_delta
    entry = _enter(
        path[0],
        Kind.REFUND,
        posted=amount,
        reference=reference,
        resolves=captured,
        reason=reason,
        actor=actor,
    )
    _move_along(path, amount, reason=reason, actor=actor)
    return entry


@transaction.atomic
def adjust(*, user: User, amount: int, reason: str, actor: User | None) -> CreditTransaction:
    """Correct a balance up or down by hand.

    Raises:
        InvalidAmount: 0. InsufficientBalance: more would be taken than is free.
    """
    return adjust_each(accounts=[lock_account(user=user)], amount=amount, reason=reason, actor=actor)[0]


def adjust_each(
    *, accounts: Sequence[CreditAccount], amount: int, reason: str, actor: User | None
) -> list[CreditTransaction]:
    """Correct each of these locked balances, in one query. Raises InvalidAmount, InsufficientBalance, as `adjust`."""
    if amount == 0:
        raise InvalidAmount()
    for account in accounts:
        _require_free(account, -amount)
    return _insert(
        [_entry(account, Kind.ADJUST, posted=amount, reason=reason, actor=actor) for account in accounts]
    )


@transaction.atomic
def transfer(*, source: User, target: User, amount: int, reason: str, actor: User) -> None:
    """Move free credits between two wallets.

    Raises:
        InsufficientBalance: the source has fewer free. InvalidAmount: not positive, or both are one wallet.
    """
    _require_positive(amount)
    if source.pk == target.pk:
        raise InvalidAmount("Credits cannot be transferred to the same account.")
    giver, taker = lock_both(source, target)
    _require_free(giver, amount)
    _move_along([giver, taker], amount, reason=reason, actor=actor)


def lock_both(one: User, other: User) -> tuple[CreditAccount, CreditAccount]:
    """Lock the wallets of two users until the transaction ends."""
    ids = dict(CreditAccount.objects.filter(user__in=[one, other]).values_list("user_id", "pk"))
    locked = _lock(*ids.values())
    return locked[ids[one.pk]], locked[ids[other.pk]]


def holder_of(entry: CreditTransaction) -> int:
    """Find the id of the wallet that has what this entry moved: its own, or the one it was merged into since."""
    return _path(entry)[-1]


def _path(entry: CreditTransaction) -> list[int]:
    """List the wallets that what this entry moved went through, from its own to the one that has it now.

    After a merge was undone, new entries of the old wallet belong to it again, so the entry decides, not the wallet.
    """
    merges = WalletMerge.objects.filter(undone_at=None).order_by("pk")
    path: list[int] = [entry.account_id]
    merge = merges.filter(source=path[-1], after_entry__gte=entry.pk).first()
    while merge is not None:
        path.append(merge.target_id)
        merge = merges.filter(source=path[-1], pk__gt=merge.pk).first()
    return path


def _lock_path(entry: CreditTransaction) -> list[CreditAccount]:
    """Lock the wallets from the entry's own to the one that has its credits now; often they are the same one.

    A merge locks its wallets, so the answer stays true until the transaction ends.
    """
    while True:
        with transaction.atomic():
            path = _path(entry)
            locked = _lock(*path)
            if _path(entry) == path:
                return [locked[wallet] for wallet in path]
            # Back to the savepoint, which gives the locks back: others may have to come before them.
            transaction.set_rollback(True)


def _lock(*ids: int) -> dict[int, CreditAccount]:
    """Lock wallets in one order, so that two callers cannot block each other."""
    rows = CreditAccount.objects.select_for_update(of=("self",)).filter(pk__in=ids).order_by("pk")
    return {row.pk: row for row in rows}


@transaction.atomic
def _resolve_each(
    references: Collection[uuid.UUID],
    kind: CreditTransaction.Kind,
    *,
    reason: str,
    actor: User | None = None,
    amount: int | None = None,
) -> list[CreditTransaction]:
    rows = CreditTransaction.objects.filter(kind=Kind.RESERVE, reference__in=references).order_by("pk")
    holds = {hold.reference: hold for hold in rows}
    for reference in references:
        if reference not in holds:
            raise NotFound(f"Nothing is held for {reference}.")
    accounts = _lock(*{hold.account_id for hold in holds.values()})
    ends = CreditTransaction.objects.filter(
        resolves__in=list(holds.values()), kind__in=[Kind.CAPTURE, Kind.RELEASE]
    )
    earlier = {end.resolves_id: end for end in ends}
    for end in earlier.values():
        if end.kind != kind:
            raise AlreadyResolved(f"The hold of {end.reference} was resolved before, by {end.kind}.")
    entries = [
        _entry(
            accounts[hold.account_id],
            kind,
            posted=-(hold.held_delta if amount is None else amount) if kind == Kind.CAPTURE else 0,
            held=-hold.held_delta,
            reference=hold.reference,
            resolves=hold,
            reason=reason,
            actor=actor,
        )
        for hold in holds.values()
        if hold.pk not in earlier
    ]
    return [*earlier.values(), *_insert(entries)]


def _move_along(path: list[CreditAccount], amount: int, *, reason: str, actor: User | None) -> None:
    """Move credits from wallet to wallet, all locked; each transfer is two entries with one reference.

    No step is left out: the undo of a merge brings back what went between its own two wallets.
    """
    for giver, taker in pairwise(path):
        pair = uuid.uuid4()
        for account, counterpart, change in ((giver, taker, -amount), (taker, giver, amount)):
            _enter(
                account,
                Kind.TRANSFER,
                posted=change,
                counterpart=counterpart,
                reference=pair,
                reason=reason,
                actor=actor,
            )


class _Values(TypedDict, total=False):
    """The fields of an entry besides its wallet and kind."""

    reason: Required[str]
    posted: int
    held: int
    reference: uuid.UUID | None
    resolves: CreditTransaction | None
    counterpart: CreditAccount | None
    external_id: str | None
    actor: User | None
    actor_id: int


def _enter(
    account: CreditAccount, kind: CreditTransaction.Kind, **values: Unpack[_Values]
) -> CreditTransaction:
    return _insert([_entry(account, kind, **values)])[0]


def _insert(entries: list[CreditTransaction]) -> list[CreditTransaction]:
    """Write entries, in their order, by the one statement that moves balances."""
    return CreditTransaction.objects.bulk_create(entries)


def _entry(
    account: CreditAccount, kind: CreditTransaction.Kind, **values: Unpack[_Values]
) -> CreditTransaction:
    """Make an entry, to be inserted, and move the figures of the locked `account` as the trigger will."""
    posted, held = values.pop("posted", 0), values.pop("held", 0)
    values["reason"] = values["reason"][:500]
    account.posted, account.held = account.posted + posted, account.held + held
    return CreditTransaction(
        account=account,
        kind=kind,
        posted_delta=posted,
        held_delta=held,
        # The trigger computes these from the locked row and moves the balance; what is sent is not trusted.
        posted_after=account.posted,
        held_after=account.held,
        **values,
    )


def _find(**lookup: object) -> CreditTransaction | None:
    return CreditTransaction.objects.filter(**lookup).first()


def _check_grant(amount: int) -> None:
    _require_positive(amount)
    if amount > MAX_GRANT:
        raise InvalidAmount(f"At most {MAX_GRANT} credits at a time.")


def _require_positive(amount: int) -> None:
    if amount <= 0:
        raise InvalidAmount("The amount must be a positive whole number of credits.")


def _require_free(account: CreditAccount, amount: int) -> None:
    if amount > account.balance:
        raise InsufficientBalance(needed=amount, balance=account.balance)


# --- The history as its owner reads it --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HistoryLine:
    """All entries of one job in a wallet, oldest first; or a single entry that is about no job."""

    entries: list[CreditTransaction]

    @property
    def latest(self) -> CreditTransaction:
        return self.entries[-1]

    @property
    def reference(self) -> uuid.UUID | None:
        return self.latest.reference

    @property
    def amount(self) -> int:
        """Change of the free balance by all of it: of a video that failed 0, of a completed one its price, negative."""
        return sum(entry.amount for entry in self.entries)


def history(*, account: CreditAccount, before: int | None = None, limit: int) -> list[HistoryLine]:
    """Read the wallet's history, what moved last first; `before`: only lines that end before that entry."""
    entries = CreditTransaction.objects.filter(account=account)
    later = entries.filter(reference=OuterRef("reference"), pk__gt=OuterRef("pk"))
    ends = entries.filter(~Exists(later)).order_by("-id")
    if before is not None:
        ends = ends.filter(pk__lt=before)
    found = list(ends[:limit])
    of_jobs = defaultdict(list)
    references = [entry.reference for entry in found if entry.reference]
    for entry in entries.filter(reference__in=references).order_by("id"):
        of_jobs[entry.reference].append(entry)
    return [HistoryLine(of_jobs[entry.reference] if entry.reference else [entry]) for entry in found]
