"""Every movement of credits. Two-phase, as TigerBeetle has it: reserve, then capture or release exactly
once.

All functions are atomic and take the account's row lock first, so two of them on one wallet run one after
the other. Amounts are whole credits. Repeating a resolution is harmless: the entry that exists is returned.
The database holds the same rules in constraints and triggers (migrations 0001 and 0002), so a mistake here is an
IntegrityError and never a wrong balance.
"""

import uuid

from django.db import transaction

from accounts.models import CreditAccount, CreditTransaction, User, WalletMerge


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


# What can go wrong with credits. Each class's docstring is its message unless one is given.


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


# Where credits are now that moved when two wallets became one.


Kind = CreditTransaction.Kind
# A grant of more is a slip of the hand.
MAX_GRANT = 1_000_000_000


def open_account(*, user: User) -> CreditAccount:
    """The user's wallet, opened empty when there is none yet."""
    return CreditAccount.objects.get_or_create(user=user)[0]


def lock_account(*, user: User) -> CreditAccount:
    """The user's wallet, its row locked until the transaction ends. Must be called inside one."""
    return CreditAccount.objects.select_for_update().get(user=user)


@transaction.atomic
def grant(
    *, user: User, amount: int, reason: str, actor: User | None = None, external_id: str | None = None
) -> CreditTransaction:
    """Give credits. With `external_id` the same grant is made once only.

    Raises:
        InvalidAmount: the amount is not positive, or more than MAX_GRANT.
    """
    _require_positive(amount)
    if amount > MAX_GRANT:
        raise InvalidAmount(f"At most {MAX_GRANT} credits at a time.")
    account = lock_account(user=user)
    if external_id and (earlier := _find(kind=Kind.GRANT, external_id=external_id)):
        return earlier
    return _enter(account, Kind.GRANT, posted=amount, reason=reason, actor=actor, external_id=external_id)


def welcome_id(user: User) -> str:
    """The external id of the sign-up grant, which makes sure that there is one."""
    return f"signup:{user.pk}"


@transaction.atomic
def purchase(*, user: User, amount: int, external_id: str, reason: str) -> CreditTransaction:
    """Credits that were paid for; `external_id` is the payment's own id and is credited once only."""
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
    account, holder = lock_with_holder(purchase)
    if earlier := standing_refund(purchase):
        return earlier
    amount = purchase.posted_delta
    _require_free(holder, amount)
    if holder != account:
        _move(holder, account, amount, reason=reason, actor=actor)
    return _enter(
        account, Kind.PURCHASE_REFUND, posted=-amount, resolves=purchase, reason=reason, actor=actor
    )


def standing_refund(purchase: CreditTransaction) -> CreditTransaction | None:
    """The refund of a purchase that was not taken back."""
    refunds = CreditTransaction.objects.filter(kind=Kind.PURCHASE_REFUND, resolves=purchase)
    return refunds.filter(resolutions=None).first()


@transaction.atomic
def compensate(*, refund: CreditTransaction, reason: str, actor: User | None = None) -> CreditTransaction:
    """Give the credits of a purchase refund back, once, because the money did not go back after all."""
    assert refund.resolves is not None
    # Whoever has what was bought: the refund may have been taken from there after a merge.
    account, holder = lock_with_holder(refund.resolves)
    if earlier := _find(kind=Kind.ADJUST, resolves=refund):
        return earlier
    amount = -refund.posted_delta
    entry = _enter(account, Kind.ADJUST, posted=amount, resolves=refund, reason=reason, actor=actor)
    if holder != account:
        _move(account, holder, amount, reason=reason, actor=actor)
    return entry


@transaction.atomic
def reserve(*, user: User, amount: int, reference: uuid.UUID, reason: str) -> CreditTransaction:
    """Hold credits for a job; 0 is a valid hold, so that a free job has one too.

    Raises:
        InsufficientBalance: fewer are free.
    """
    if amount < 0:
        raise InvalidAmount()
    account = lock_account(user=user)
    _require_free(account, amount)
    return _enter(account, Kind.RESERVE, held=amount, reference=reference, reason=reason, actor=user)


def capture(*, reference: uuid.UUID, reason: str) -> CreditTransaction:
    """Charge what was held for a job.

    Raises:
        NotFound: nothing was held. AlreadyResolved: it was released before.
    """
    return _resolve(reference, Kind.CAPTURE, reason=reason)


def release(*, reference: uuid.UUID, reason: str, actor: User | None = None) -> CreditTransaction:
    """Give back what was held for a job.

    Raises:
        NotFound: nothing was held. AlreadyResolved: it was captured before.
    """
    return _resolve(reference, Kind.RELEASE, reason=reason, actor=actor)


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
    account, holder = lock_with_holder(captured)
    if earlier := _find(kind=Kind.REFUND, resolves=captured):
        return earlier
    amount = -captured.posted_delta
    entry = _enter(
        account,
        Kind.REFUND,
        posted=amount,
        reference=reference,
        resolves=captured,
        reason=reason,
        actor=actor,
    )
    if holder != account:
        _move(account, holder, amount, reason=reason, actor=actor)
    return entry


@transaction.atomic
def adjust(*, user: User, amount: int, reason: str, actor: User) -> CreditTransaction:
    """Correct a balance up or down by hand.

    Raises:
        InvalidAmount: 0. InsufficientBalance: more would be taken than is free.
    """
    if amount == 0:
        raise InvalidAmount()
    account = lock_account(user=user)
    _require_free(account, -amount)
    return _enter(account, Kind.ADJUST, posted=amount, reason=reason, actor=actor)


@transaction.atomic
def transfer(*, source: User, target: User, amount: int, reason: str, actor: User) -> CreditTransaction:
    """Move free credits between two wallets as two entries that name each other's account and share a
    reference.

    Raises:
        InsufficientBalance: the source has fewer free. InvalidAmount: not positive, or both are one wallet.
    """
    _require_positive(amount)
    if source.pk == target.pk:
        raise InvalidAmount("Credits cannot be transferred to the same account.")
    giver, taker = lock_both(source, target)
    _require_free(giver, amount)
    return _move(giver, taker, amount, reason=reason, actor=actor)


def lock_both(one: User, other: User) -> tuple[CreditAccount, CreditAccount]:
    """The wallets of two people, locked until the transaction ends."""
    ids = dict(CreditAccount.objects.filter(user__in=[one, other]).values_list("user_id", "pk"))
    locked = lock_wallets(*ids.values())
    return locked[ids[one.pk]], locked[ids[other.pk]]


@transaction.atomic
def _resolve(
    reference: uuid.UUID, kind: CreditTransaction.Kind, *, reason: str, actor: User | None = None
) -> CreditTransaction:
    hold = CreditTransaction.objects.filter(kind=Kind.RESERVE, reference=reference).first()
    if hold is None:
        raise NotFound(f"Nothing is held for {reference}.")
    account = _lock_account_of(hold)
    earlier = CreditTransaction.objects.filter(resolves=hold, kind__in=[Kind.CAPTURE, Kind.RELEASE]).first()
    if earlier is not None:
        if earlier.kind == kind:
            return earlier
        raise AlreadyResolved(f"The hold of {reference} was resolved before, by {earlier.kind}.")
    posted = -hold.held_delta if kind == Kind.CAPTURE else 0
    return _enter(
        account,
        kind,
        posted=posted,
        held=-hold.held_delta,
        reference=reference,
        resolves=hold,
        reason=reason,
        actor=actor,
    )


def _move(
    giver: CreditAccount, taker: CreditAccount, amount: int, *, reason: str, actor: User | None
) -> CreditTransaction:
    """Between two locked wallets: two entries that name each other and share a reference. Returns the taker's."""
    pair = uuid.uuid4()

    def half(account: CreditAccount, amount: int, counterpart: CreditAccount) -> CreditTransaction:
        return _enter(
            account,
            Kind.TRANSFER,
            posted=amount,
            counterpart=counterpart,
            reference=pair,
            reason=reason,
            actor=actor,
        )

    half(giver, -amount, taker)
    return half(taker, amount, giver)


def _enter(
    account: CreditAccount,
    kind: CreditTransaction.Kind,
    *,
    reason: str,
    posted: int = 0,
    held: int = 0,
    reference: uuid.UUID | None = None,
    resolves: CreditTransaction | None = None,
    counterpart: CreditAccount | None = None,
    external_id: str | None = None,
    actor: User | None = None,
) -> CreditTransaction:
    entry = CreditTransaction(
        account=account,
        kind=kind,
        posted_delta=posted,
        held_delta=held,
        # The trigger computes these from the locked row and moves the balance; what is sent is not trusted.
        posted_after=account.posted + posted,
        held_after=account.held + held,
        reference=reference,
        resolves=resolves,
        counterpart=counterpart,
        external_id=external_id,
        actor=actor,
        reason=reason[:500],
    )
    entry.save(force_insert=True)
    account.posted, account.held = entry.posted_after, entry.held_after
    return entry


def _find(**lookup: object) -> CreditTransaction | None:
    return CreditTransaction.objects.filter(**lookup).first()


def _lock_account_of(entry: CreditTransaction) -> CreditAccount:
    return CreditAccount.objects.select_for_update().get(pk=entry.account_id)


def _require_positive(amount: int) -> None:
    if amount <= 0:
        raise InvalidAmount("The amount must be a positive whole number of credits.")


def _require_free(account: CreditAccount, amount: int) -> None:
    if amount > account.balance:
        raise InsufficientBalance(needed=amount, balance=account.balance)
