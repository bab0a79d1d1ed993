"""What staff do about people on Telegram and their payments. As in `accounts.staff`, each act is held against the
actor's rights and written down in its own transaction.
"""

import uuid

from django.db import transaction
from django.db.models.functions import Now

from accounts import merging
from accounts.models import WalletMerge
from accounts.staff import audit_log
from accounts.staff.actor import Actor, Refused
from telegram_bot import linking, refunds, wakeup
from telegram_bot.models import JobMessage, StarPayment, TelegramUpdate


@transaction.atomic
def undo_merge(*, actor: Actor, merge: WalletMerge, reason: str, once: uuid.UUID | None = None) -> None:
    """Two accounts that were joined are two again: credits and videos go back.

    Raises:
        NotPermitted: the actor may not. Refused, LedgerError: it cannot be undone now; nothing has changed.
    """
    actor.must("accounts.undo_walletmerge")
    back = merging.net_moved(merge)
    audit_log.record(
        actor=actor,
        act="merge.undo",
        subject=merge,
        reason=reason,
        before={"source": merge.source.user, "target": merge.target.user},
        after={"moved_back": back},
        once=once,
    )
    try:
        linking.undo(merge=merge, reason=reason, actor=actor.user)
    except linking.LinkError as error:
        raise Refused(str(error)) from error


@transaction.atomic
def handle_again(*, actor: Actor, update: TelegramUpdate, reason: str, once: uuid.UUID | None = None) -> None:
    """Have a message that could not be handled looked at again; what was done already is found done.

    Raises:
        NotPermitted: the actor may not. Refused: it did not fail.
    """
    actor.must("telegram_bot.change_telegramupdate")
    failed = TelegramUpdate.objects.filter(pk=update.pk, state=TelegramUpdate.State.FAILED)
    if not failed.update(state=TelegramUpdate.State.RECEIVED, error="", settled_at=None):
        raise Refused("Only what could not be handled is handled again.")
    before = {"error": update.error}
    audit_log.record(actor=actor, act="update.again", subject=update, reason=reason, before=before, once=once)
    wakeup.call(wakeup.INBOX)


@transaction.atomic
def deliver_again(*, actor: Actor, message: JobMessage, reason: str, once: uuid.UUID | None = None) -> None:
    """Try anew to bring somebody a result that Telegram did not take.

    Raises:
        NotPermitted: the actor may not. Refused: it was delivered, or is being tried.
    """
    actor.must("telegram_bot.change_jobmessage")
    failed = JobMessage.objects.filter(pk=message.pk, state=JobMessage.State.FAILED)
    if not failed.update(state=JobMessage.State.PENDING, attempts=0, next_attempt_at=Now()):
        raise Refused("Only what could not be delivered is delivered again.")
    before = {"error": message.error}
    audit_log.record(
        actor=actor, act="delivery.again", subject=message, reason=reason, before=before, once=once
    )
    wakeup.call(wakeup.OUTBOX)


@transaction.atomic
def refund_payment(
    *, actor: Actor, payment: StarPayment, reason: str, once: uuid.UUID | None = None
) -> StarPayment:
    """Take back the credits of a payment, and have Telegram give the Stars back.

    Raises:
        NotPermitted: the actor may not. Refused: the credits were spent, or it was refunded before.
    """
    actor.must("telegram_bot.refund_starpayment")
    taken = payment.purchase.posted_delta if payment.purchase else 0
    audit_log.record(
        actor=actor,
        act="payment.refund",
        subject=payment,
        reason=reason,
        before={"state": payment.state},
        after={"state": StarPayment.State.REFUNDING, "stars": payment.stars},
        credits=-taken,
        once=once,
    )
    try:
        return refunds.begin(payment=payment, reason=reason, actor=actor.user)
    except refunds.CannotRefund as error:
        raise Refused(str(error)) from error
