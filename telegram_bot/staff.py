"""Operations of the staff on Telegram accounts, updates, deliveries and payments."""

from django.db.models.functions import Now

from accounts import merging
from accounts.models import WalletMerge
from accounts.staff.actor import Refused
from accounts.staff.audit_log import Operation, operation
from telegram_bot import linking, refunds, wakeup
from telegram_bot.models import JobMessage, StarPayment, TelegramUpdate


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
def handle_again(op: Operation, update: TelegramUpdate) -> None:
    """Have a failed update handled again. Handlers find what they did the first time.

    Raises:
        Refused: it did not fail.
    """
    failed = TelegramUpdate.objects.filter(pk=update.pk, state=TelegramUpdate.State.FAILED)
    if not failed.update(state=TelegramUpdate.State.RECEIVED, error="", settled_at=None):
        raise Refused("Only what could not be handled is handled again.")
    op.record(update, before={"error": update.error})
    wakeup.call(wakeup.INBOX)


@operation("telegram_bot.change_jobmessage", "delivery.again")
def deliver_again(op: Operation, message: JobMessage) -> None:
    """Retry a delivery that failed. Raises Refused when it was delivered, or is being tried."""
    failed = JobMessage.objects.filter(pk=message.pk, state=JobMessage.State.FAILED)
    if not failed.update(state=JobMessage.State.PENDING, attempts=0, next_attempt_at=Now()):
        raise Refused("Only what could not be delivered is delivered again.")
    op.record(message, before={"error": message.error})
    wakeup.call(wakeup.OUTBOX)


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
