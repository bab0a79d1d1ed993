"""Buying credits with Telegram Stars: what is for sale, the checkout, and crediting what was paid.

The price is the invoice's: the checkout is refused when it is no longer the pack's, and what was paid is credited as it
was offered. A charge is credited once, however often Telegram tells of it: the ledger and the table of payments both
refuse a second one.
"""

import logging
import uuid
from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy, gettext_noop

from accounts import ledger
from accounts.models import CreditAccount
from telegram_bot.models import CreditPack, StarInvoice, StarPayment, TelegramAccount

logger = logging.getLogger(__name__)

STARS = "XTR"
BOUGHT = gettext_noop("Bought with Telegram Stars")  # stored in English, translated where it is shown
State = StarPayment.State


class CannotBuy(Exception):
    """No sale; `words` say why."""

    words: Promise | str = ""

    def __init__(self) -> None:
        super().__init__(str(self.words))


class PackGone(CannotBuy):
    words = gettext_lazy("This offer has ended. Send /buy for what is for sale now.")


class PriceChanged(CannotBuy):
    words = gettext_lazy("The price has changed since. Send /buy for the new one. Nothing was paid.")


class NotYours(CannotBuy):
    words = gettext_lazy("This invoice was made for somebody else. Send /buy for one of your own.")


class NotActive(CannotBuy):
    words = gettext_lazy("This account is not active. Nothing was paid.")


@dataclass(frozen=True)
class Charge:
    """What Telegram says was paid."""

    charge_id: str
    payload: str
    currency: str
    amount: int


def for_sale() -> list[CreditPack]:
    return list(CreditPack.objects.filter(for_sale=True))


def is_anything_for_sale() -> bool:
    return CreditPack.objects.filter(for_sale=True).exists()


def offer(*, account: TelegramAccount, pack_id: int, asked_by: str) -> StarInvoice:
    """An invoice for a pack at its price of now; the same one when the same update asks again.

    Raises:
        CannotBuy
    """
    if not account.user.is_active:
        raise NotActive
    pack = CreditPack.objects.filter(pk=pack_id, for_sale=True).first()
    if pack is None:
        raise PackGone
    facts = {"account": account, "pack": pack, "credits": pack.credits, "stars": pack.stars}
    return StarInvoice.objects.get_or_create(asked_by=asked_by, defaults=facts)[0]


def check_out(*, telegram_id: int, payload: str, currency: str, amount: int) -> StarInvoice:
    """Whether somebody may pay now, just before they do.

    Raises:
        CannotBuy: they may not, and keep their Stars.
    """
    invoice = _invoice_of(payload)
    if invoice is None or invoice.pack is None or not invoice.pack.for_sale:
        raise PackGone
    if invoice.account is None or invoice.account.telegram_id != telegram_id:
        raise NotYours
    promised = (STARS, invoice.stars, invoice.stars, invoice.credits)
    if (currency, amount, invoice.pack.stars, invoice.pack.credits) != promised:
        raise PriceChanged
    if not invoice.account.user.is_active:
        raise NotActive
    return invoice


def credit(*, bot_id: int, telegram_id: int, charge: Charge) -> StarPayment:
    """Write down what was paid and give the credits for it, both once. Whoever paid gets them, banned or not.

    What fits no invoice is kept too, without credits: staff give it back or make it good.
    """
    try:
        return _credit(bot_id=bot_id, telegram_id=telegram_id, charge=charge)
    except IntegrityError:
        # Another process was told of the same charge at the same moment.
        return StarPayment.objects.select_related("purchase").get(charge_id=charge.charge_id)


@transaction.atomic
def _credit(*, bot_id: int, telegram_id: int, charge: Charge) -> StarPayment:
    # Locked, so that the person is not just becoming part of another account.
    accounts = TelegramAccount.objects.select_for_update(of=("self",)).select_related("user")
    account = accounts.get(telegram_id=telegram_id)
    ledger.lock_account(user=account.user)
    told_before = StarPayment.objects.select_related("purchase").filter(charge_id=charge.charge_id)
    if earlier := told_before.first():
        return earlier
    payment = StarPayment(
        bot_id=bot_id,
        charge_id=charge.charge_id,
        telegram_id=telegram_id,
        user=account.user,
        payload=charge.payload.replace("\x00", "")[:128],
        stars=charge.amount,
        state=State.UNKNOWN,
    )
    invoice = _invoice_of(charge.payload)
    if invoice is None or (charge.currency, charge.amount) != (STARS, invoice.stars):
        logger.error("charge %s paid for something that was never offered", charge.charge_id)
    else:
        payment.invoice, payment.state = invoice, State.PAID
        payment.purchase = ledger.purchase(
            user=account.user,
            amount=invoice.credits,
            external_id=charge.charge_id,
            reason=f"{BOUGHT}: {charge.amount}",
        )
    payment.save(force_insert=True)
    return payment


def balance_of(payment: StarPayment) -> int:
    """Free credits of whoever paid, or of the account they are part of."""
    account = TelegramAccount.objects.filter(telegram_id=payment.telegram_id).first()
    return CreditAccount.objects.get(user=account.user_id if account else payment.user_id).balance


def latest(account: TelegramAccount) -> list[StarPayment]:
    """What this person paid last."""
    return list(StarPayment.objects.filter(telegram_id=account.telegram_id).select_related("purchase")[:5])


def _invoice_of(payload: str) -> StarInvoice | None:
    try:
        invoice_id = uuid.UUID(payload)
    except ValueError:
        return None
    return StarInvoice.objects.select_related("pack", "account__user").filter(pk=invoice_id).first()
