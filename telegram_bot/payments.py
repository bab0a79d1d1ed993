"""Buying credits with Telegram Stars: invoices, the checkout, and crediting a charge.

The price is the invoice's: the checkout is refused when it is no longer the pack's, and a charge is credited as it was
offered. A charge is credited once, however often Telegram reports it: the ledger and the table of payments both refuse
a second one.
"""

import logging
import uuid

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop
from telegram import PreCheckoutQuery, SuccessfulPayment

from accounts import ledger
from accounts.models import Ban, User
from telegram_bot.errors import Refusal
from telegram_bot.models import CreditPack, StarInvoice, StarPayment, TelegramAccount

logger = logging.getLogger(__name__)

STARS = "XTR"
BOUGHT = gettext_noop("Bought with Telegram Stars")  # stored in English, translated where it is shown
State = StarPayment.State


PACK_GONE = gettext_lazy("This offer has ended. Send /buy for what is for sale now.")


def _not_active(user: User) -> str:
    return f"{Ban.words_for(user)} {_('Nothing was paid.')}"


def for_sale() -> list[CreditPack]:
    return list(CreditPack.objects.filter(for_sale=True))


def offer(*, account: TelegramAccount, pack_id: int, asked_by: str) -> StarInvoice:
    """Make an invoice for a pack at its price of now, once for each update that asks. Raises Refusal."""
    if not account.user.is_active:
        raise Refusal(_not_active(account.user))
    pack = CreditPack.objects.filter(pk=pack_id, for_sale=True).first()
    if pack is None:
        raise Refusal(PACK_GONE)
    facts = {"account": account, "pack": pack, "credits": pack.credits, "stars": pack.stars}
    return StarInvoice.objects.get_or_create(asked_by=asked_by, defaults=facts)[0]


def check_out(query: PreCheckoutQuery) -> StarInvoice:
    """Find the invoice that is about to be paid, and check that it still holds.

    Raises:
        Refusal: it does not, and the person keeps their Stars.
    """
    invoice = _invoice_of(query.invoice_payload)
    if invoice is None or invoice.pack is None or not invoice.pack.for_sale:
        raise Refusal(PACK_GONE)
    if invoice.account is None or invoice.account.telegram_id != query.from_user.id:
        raise Refusal(_("This invoice was made for another person. Send /buy for one of your own."))
    promised = (STARS, invoice.stars, invoice.stars, invoice.credits)
    if (query.currency, query.total_amount, invoice.pack.stars, invoice.pack.credits) != promised:
        raise Refusal(_("The price has changed since. Send /buy for the new one. Nothing was paid."))
    if not invoice.account.user.is_active:
        raise Refusal(_not_active(invoice.account.user))
    return invoice


def credit(*, bot_id: int, telegram_id: int, charge: SuccessfulPayment) -> StarPayment:
    """Store a charge and give the credits for it, both once. The payer gets them even when banned.

    A charge that fits no invoice is kept too, without credits: staff give it back or make it good.
    """
    try:
        return _credit(bot_id=bot_id, telegram_id=telegram_id, charge=charge)
    except IntegrityError:
        # Another process stored the same charge at the same moment.
        return StarPayment.objects.select_related("purchase").get(charge_id=charge.telegram_payment_charge_id)


@transaction.atomic
def _credit(*, bot_id: int, telegram_id: int, charge: SuccessfulPayment) -> StarPayment:
    # Locked, so that the person is not just becoming part of another account.
    accounts = TelegramAccount.objects.select_for_update(of=("self",)).select_related("user")
    account = accounts.get(telegram_id=telegram_id)
    ledger.lock_account(user=account.user)
    stored = StarPayment.objects.select_related("purchase").filter(
        charge_id=charge.telegram_payment_charge_id
    )
    if earlier := stored.first():
        return earlier
    payment = StarPayment(
        bot_id=bot_id,
        charge_id=charge.telegram_payment_charge_id,
        telegram_id=telegram_id,
        user=account.user,
        payload=charge.invoice_payload.replace("\x00", "")[:128],
        stars=charge.total_amount,
        state=State.UNKNOWN,
    )
    invoice = _invoice_of(charge.invoice_payload)
    if invoice is None or (charge.currency, charge.total_amount) != (STARS, invoice.stars):
        logger.error("charge %s paid for something that was never offered", charge.telegram_payment_charge_id)
    else:
        payment.invoice, payment.state = invoice, State.PAID
        payment.purchase = ledger.purchase(
            user=account.user,
            amount=invoice.credits,
            external_id=charge.telegram_payment_charge_id,
            reason=f"{BOUGHT}: {charge.total_amount}",
        )
    payment.save(force_insert=True)
    return payment


def latest(account: TelegramAccount) -> list[StarPayment]:
    return list(StarPayment.objects.filter(telegram_id=account.telegram_id).select_related("purchase")[:5])


def _invoice_of(payload: str) -> StarInvoice | None:
    try:
        invoice_id = uuid.UUID(payload)
    except ValueError:
        return None
    return StarInvoice.objects.select_related("pack", "account__user").filter(pk=invoice_id).first()
