"""Stars that go back: the credits first, then the money.

The credits are taken back before Telegram is asked (`sending.delivery`), so that they cannot be spent meanwhile. A
definite refusal gives them back by an entry of its own.
"""

import logging

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import translation
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.ledger import InsufficientBalance, holder_of
from accounts.models import CreditAccount, User
from accounts.staff.actor import Refused
from telegram_bot import users, wakeup
from telegram_bot.models import StarPayment, TelegramAccount
from telegram_bot.sending import outbox
from telegram_bot.texts import payments as texts

logger = logging.getLogger(__name__)

State = StarPayment.State
BY_TELEGRAM = "Refunded by Telegram:"


def why_not(payment: StarPayment) -> str | None:
    """Explain why a payment cannot be refunded now; None when it can."""
    if payment.state == State.REFUNDED:
        return "This payment was refunded before."
    if payment.state == State.REFUNDING:
        return "This payment is being refunded."
    if payment.purchase is None:
        return None
    free = CreditAccount.objects.get(pk=holder_of(payment.purchase)).balance
    bought = payment.purchase.posted_delta
    if free >= bought:
        return None
    return f"{bought} credits were bought, and only {free} are free: the rest was spent."


@transaction.atomic
def begin(*, payment: StarPayment, reason: str, actor: User) -> StarPayment:
    """Take the credits back, and have the bot's process ask Telegram for the refund. Raises Refused."""
    row = _locked().get(pk=payment.pk)
    if why := why_not(row):
        raise Refused(why)
    if row.purchase is not None:
        try:
            row.refund = ledger.purchase_refund(purchase=row.purchase, reason=reason, actor=actor)
        except InsufficientBalance as error:
            raise Refused(str(error)) from error
    row.state, row.refund_reason, row.refund_by = State.REFUNDING, reason[:200], actor
    row.attempts, row.error, row.next_attempt_at = 0, "", Now()
    row.save()
    wakeup.call(wakeup.OUTBOX)
    return row


@transaction.atomic
def refunded(payment_id: int) -> None:
    """Settle a refund that Telegram carried out, and tell the payer."""
    row = _locked().get(pk=payment_id)
    if row.state != State.REFUNDING:
        return
    row.state, row.refunded_at, row.next_attempt_at, row.error = State.REFUNDED, Now(), None, ""
    row.save()
    account = TelegramAccount.objects.select_related("user").filter(telegram_id=row.telegram_id).first()
    if account is not None:
        with translation.override(users.language_of(account)):
            outbox.tell(chat_id=row.telegram_id, text=texts.refunded(row))


@transaction.atomic
def refused(payment_id: int, *, error: str) -> None:
    """Give the credits back: Telegram definitely keeps the Stars where they are."""
    row = _locked().get(pk=payment_id)
    if row.state != State.REFUNDING:
        return
    if row.refund is not None:
        ledger.compensate(refund=row.refund, reason=gettext_noop("Telegram did not refund the Stars"))
    row.state = State.UNKNOWN if row.purchase is None else State.PAID
    row.refund, row.next_attempt_at, row.error = None, None, error[:500]
    row.save()


@transaction.atomic
def seen_outside(*, charge_id: str) -> None:
    """Follow a refund that Telegram reports, which may not have been asked for here."""
    row = _locked().filter(charge_id=charge_id).first()
    if row is None or row.state == State.REFUNDED or row.error.startswith(BY_TELEGRAM):
        return
    if row.state != State.REFUNDING:
        if row.purchase is not None:
            try:
                reason = gettext_noop("Refunded by Telegram")
                row.refund = ledger.purchase_refund(purchase=row.purchase, reason=reason)
            except InsufficientBalance as error:
                # Take back what is left; what was spent already is lost.
                wallet = CreditAccount.objects.select_related("user").get(pk=holder_of(row.purchase))
                if left := min(wallet.balance, row.purchase.posted_delta):
                    ledger.adjust(user=wallet.user, amount=-left, reason=reason, actor=None)
                logger.error("charge %s was refunded by Telegram, but %s", charge_id, error)
                text = (
                    f"{BY_TELEGRAM} {row.purchase.posted_delta} credits; {left} were left and are taken back."
                )
                StarPayment.objects.filter(pk=row.pk).update(error=text)
                return
        row.state = State.REFUNDING
        row.save()
    refunded(row.pk)


def _locked() -> "QuerySet[StarPayment]":
    return StarPayment.objects.select_for_update(of=("self",)).select_related("purchase", "refund")
