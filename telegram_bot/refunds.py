"""Stars that go back: the credits first, then the money.

The credits are taken back before Telegram is asked, so that nobody spends them meanwhile. A definite refusal gives them
back by an entry of its own. An answer that says nothing is no verdict: the same question is asked again, which Telegram
answers with CHARGE_ALREADY_REFUNDED if the first one went through.
"""

import asyncio
import logging
from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now
from django.utils import translation
from django.utils.translation import gettext_noop
from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError

from accounts import ledger
from accounts.ledger import InsufficientBalance, holder_of
from accounts.models import CreditAccount, User
from generation.database import DATABASE_AWAY, in_database
from telegram_bot import language, wakeup
from telegram_bot.models import StarPayment, TelegramAccount
from telegram_bot.sending import notices, retrying
from telegram_bot.sending.client import BotClient, wait_asked_for
from telegram_bot.texts import payments as texts

logger = logging.getLogger(__name__)

State = StarPayment.State
LOOK_SECONDS = 3.0
LONGEST_PAUSE = 600.0
DONE_BEFORE = "CHARGE_ALREADY_REFUNDED"


class CannotRefund(Exception):
    """The Stars of this payment cannot be given back; the message says why."""


# --- What becomes of a payment ----------------------------------------------------------------------------------------


def why_not(payment: StarPayment) -> str | None:
    """Why a payment cannot be refunded now; None when it can."""
    if payment.state == State.REFUNDED:
        return "This payment was refunded before."
    if payment.state == State.REFUNDING:
        return "This payment is being refunded."
    if payment.purchase is None:
        return None
    free = CreditAccount.objects.get(pk=holder_of(payment.purchase)).balance
    bought = payment.purchase.posted_delta
    return (
        None
        if free >= bought
        else f"{bought} credits were bought, and only {free} are free: the rest was spent."
    )


@transaction.atomic
def begin(*, payment: StarPayment, reason: str, actor: User) -> StarPayment:
    """Take the credits back, and have the bot's process ask Telegram for the refund.

    Raises:
        CannotRefund: nothing has changed.
    """
    row = _locked(payment.pk)
    if why := why_not(row):
        raise CannotRefund(why)
    if row.purchase is not None:
        try:
            row.refund = ledger.purchase_refund(purchase=row.purchase, reason=reason, actor=actor)
        except InsufficientBalance as error:
            raise CannotRefund(str(error)) from error
    row.state, row.refund_reason, row.refund_by = State.REFUNDING, reason[:200], actor
    row.attempts, row.error, row.next_attempt_at = 0, "", Now()
    row.save()
    wakeup.ring(wakeup.REFUNDS)
    return row


@transaction.atomic
def refunded(payment_id: int) -> None:
    """The Stars are back with whoever paid."""
    row = _locked(payment_id)
    if row.state != State.REFUNDING:
        return
    row.state, row.refunded_at, row.next_attempt_at, row.error = State.REFUNDED, Now(), None, ""
    row.save()
    account = TelegramAccount.objects.select_related("user").filter(telegram_id=row.telegram_id).first()
    if account is not None:
        with translation.override(language.language_of(account)):
            notices.tell(chat_id=row.telegram_id, text=texts.refunded(row))


@transaction.atomic
def refused(payment_id: int, *, error: str) -> None:
    """Telegram surely keeps the Stars where they are: the credits are given back."""
    row = _locked(payment_id)
    if row.state != State.REFUNDING:
        return
    if row.refund is not None:
        ledger.compensate(refund=row.refund, reason=gettext_noop("Telegram did not refund the Stars"))
    row.state = State.UNKNOWN if row.purchase is None else State.PAID
    row.refund, row.next_attempt_at, row.error = None, None, error[:500]
    row.save()


@transaction.atomic
def seen_outside(*, charge_id: str) -> None:
    """Telegram says that a charge was refunded, which may have been by another hand than ours."""
    row = StarPayment.objects.select_for_update(of=("self",)).filter(charge_id=charge_id).first()
    if row is None or row.state == State.REFUNDED:
        return
    if row.state != State.REFUNDING:
        if row.purchase is not None:
            try:
                reason = gettext_noop("Refunded by Telegram")
                row.refund = ledger.purchase_refund(purchase=row.purchase, reason=reason)
            except InsufficientBalance as error:
                logger.error("charge %s was refunded by Telegram, but %s", charge_id, error)
                StarPayment.objects.filter(pk=row.pk).update(error=f"Refunded by Telegram, but {error}")
                return
        row.state = State.REFUNDING
        row.save()
    refunded(row.pk)


def _locked(payment_id: int) -> StarPayment:
    rows = StarPayment.objects.select_for_update(of=("self",)).select_related("purchase", "refund")
    return rows.get(pk=payment_id)


# --- Asking Telegram --------------------------------------------------------------------------------------------------


@in_database
def due(bot_id: int) -> list[StarPayment]:
    rows = StarPayment.objects.filter(bot_id=bot_id, state=State.REFUNDING, next_attempt_at__lte=Now())
    return list(rows.order_by("next_attempt_at")[:100])


@in_database
def ask_later(row: StarPayment, *, error: str, seconds: float) -> None:
    when = Now() + timedelta(seconds=seconds)
    rows = StarPayment.objects.filter(pk=row.pk, state=State.REFUNDING)
    rows.update(attempts=row.attempts + 1, next_attempt_at=when, error=error[:500])


async def ask_for_ever(bot: BotClient, bot_id: int, called: asyncio.Event) -> None:
    """Ask Telegram for the refunds that are due, whenever there is one and every few seconds."""
    while True:
        try:
            for row in await due(bot_id):
                await _ask(bot, row)
        except DATABASE_AWAY as error:
            # What was answered and could not be written down is asked again, and answered as done.
            logger.warning("cannot look for refunds now: %s", error)
        await wakeup.called_or_later(called, seconds=LOOK_SECONDS)


async def _ask(bot: BotClient, row: StarPayment) -> None:
    try:
        await bot.refund_star_payment(row.telegram_id, row.charge_id)
    except InvalidToken:
        raise
    except (BadRequest, Forbidden) as error:
        if DONE_BEFORE not in error.message.upper():
            logger.warning("Telegram does not refund charge %s: %s", row.charge_id, error)
            await in_database(refused)(row.pk, error=error.message)
            return
    except TelegramError as error:
        pause = wait_asked_for(error) or retrying.delay(row.attempts + 1, longest=LONGEST_PAUSE)
        logger.warning("no verdict on the refund of %s, again in %.0f s: %s", row.charge_id, pause, error)
        await ask_later(row, error=str(error) or repr(error), seconds=pause)
        return
    await in_database(refunded)(row.pk)
    logger.info("charge %s is refunded", row.charge_id)
