"""Operations of the staff on Telegram accounts, updates, deliveries and payments."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from django.db.models.functions import Now

from accounts import merging
from accounts.models import WalletMerge
from accounts.staff.actor import Refused
from accounts.staff.audit_log import Operation, Outcome, operation
from telegram_bot import linking, refunds, wakeup
from telegram_bot.models import JobMessage, StarPayment, TelegramUpdate

Row = TypeVar("Row", TelegramUpdate, JobMessage)


@operation("accounts.undo_walletmerge", "merge.undo")
def undo_merge(op: Operation, merge: WalletMerge) -> None:
    """Part two accounts that were joined: credits and videos go back.

    Raises:
        Refused, LedgerError: it cannot be undone now; nothing has changed.
    """
    op.record(
        merge,
        before={"source": merge.source.user, "target": merge.target.user},
        after={"moved_back": merging.net_moved(merge)},
    )
    try:
        linking.undo(merge=merge, reason=op.reason, actor=op.actor.user)
    except linking.LinkError as error:
        raise Refused(str(error)) from error


@operation("telegram_bot.change_telegramupdate", "update.again")
def handle_again(op: Operation, updates: Sequence[TelegramUpdate]) -> Outcome[TelegramUpdate]:
    """Have failed updates handled again. Handlers find what they did the first time."""
    again = {"state": TelegramUpdate.State.RECEIVED, "error": "", "settled_at": None}
    why_not = "Only what could not be handled is handled again."
    return _again(op, TelegramUpdate, updates, again, why_not=why_not, wake=wakeup.INBOX)


@operation("telegram_bot.change_jobmessage", "delivery.again")
def deliver_again(op: Operation, messages: Sequence[JobMessage]) -> Outcome[JobMessage]:
    """Retry deliveries that failed."""
    again = {"state": JobMessage.State.PENDING, "attempts": 0, "next_attempt_at": Now()}
    why_not = "Only what could not be delivered is delivered again."
    return _again(op, JobMessage, messages, again, why_not=why_not, wake=wakeup.OUTBOX)


def _again(
    op: Operation,
    model: type[Row],
    rows: Sequence[Row],
    again: Mapping[str, object],
    *,
    why_not: str,
    wake: str,
) -> Outcome[Row]:
    chosen = model._default_manager.filter(pk__in=[row.pk for row in rows])
    found = op.possible(chosen, lambda row: None if row.state == model.State.FAILED else why_not)
    op.record_each([(row, {"error": row.error}, {}) for row in found])
    chosen.filter(pk__in=[row.pk for row in found]).update(**again)
    wakeup.call(wake)
    return op.outcome(found)


@operation("telegram_bot.refund_starpayment", "payment.refund")
def refund_payment(op: Operation, payment: StarPayment) -> StarPayment:
    """Take back the credits of a payment, and have Telegram refund the Stars.

    Raises:
        Refused: the credits were spent, or it was refunded before.
    """
    taken = payment.purchase.posted_delta if payment.purchase else 0
    op.record(
        payment,
        before={"state": payment.state},
        after={"state": StarPayment.State.REFUNDING, "stars": payment.stars},
        credits=-taken,
    )
    return refunds.begin(payment=payment, reason=op.reason, actor=op.actor.user)
