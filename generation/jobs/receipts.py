"""The ledger's entries of one clip, line by line, for its owner."""

from dataclasses import dataclass
from datetime import datetime

from accounts.models import CreditAccount, CreditTransaction
from generation.models import GenerationJob

Kind = CreditTransaction.Kind


@dataclass(frozen=True)
class Line:
    """One entry, in credits. amount: what moved, positive. change: of the free balance, 0 for a charge of held ones."""

    kind: str
    amount: int
    change: int
    balance_after: int
    at: datetime


@dataclass(frozen=True)
class Receipt:
    """The lines of a clip, oldest first, and the free balance before the first of them."""

    balance_before: int
    lines: list[Line]


def receipt_of(job: GenerationJob) -> Receipt:
    """Read the hold that every job has, and the charge, release or refund that followed.

    They are looked for in every wallet: when accounts are joined, entries stay in the one that they were made in.
    """
    entries = list(
        CreditTransaction.objects.filter(reference=job.id).exclude(kind=Kind.TRANSFER).order_by("id")
    )
    first = entries[0] if entries else None
    return Receipt(
        balance_before=(
            first.balance_after - first.amount
            if first
            else CreditAccount.objects.get(user_id=job.user_id).balance
        ),
        lines=[
            Line(
                kind=entry.kind,
                amount=max(abs(entry.posted_delta), abs(entry.held_delta)),
                change=entry.amount,
                balance_after=entry.balance_after,
                at=entry.created_at,
            )
            for entry in entries
        ],
    )
