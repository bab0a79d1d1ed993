"""/balance, /buy, the checkout, payments, /paysupport and /terms."""

import logging

from django.db.models import F
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from telegram import InlineKeyboardMarkup, LabeledPrice, PreCheckoutQuery
from telegram.error import BadRequest

from accounts import ledger
from accounts.models import CreditAccount, CreditTransaction, User
from generation.database import DATABASE_AWAY, in_database
from telegram_bot import language, payments, refunds
from telegram_bot.commands.welcome import for_sale, wallet_of
from telegram_bot.payments import Charge
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command, deep_link, message, update
from telegram_bot.sending.client import BotClient
from telegram_bot.texts import jobs, parts
from telegram_bot.texts import payments as texts

logger = logging.getLogger(__name__)

# What stands behind `?start=` in a link to the offers.
HERE = "buy_here"
LAST_ENTRIES = 5

offer = in_database(payments.offer)
check_out = in_database(payments.check_out)
credit = in_database(payments.credit)
latest = in_database(payments.latest)
seen_outside = in_database(refunds.seen_outside)


@in_database
def statement_of(person: User) -> tuple[CreditAccount, list[CreditTransaction]]:
    """Find the wallet and the last entries that changed the free credits: a capture of held credits does not."""
    wallet = ledger.open_account(user=person)
    moved = wallet.transactions.exclude(posted_delta=F("held_delta"))
    return wallet, list(moved.order_by("-id")[:LAST_ENTRIES])


@command("balance", menu=gettext_lazy("Show your credits"))
async def balance(request: Request) -> None:
    """Show free credits and the last entries."""
    wallet, entries = await statement_of(request.person)
    text = jobs.balance(free=wallet.balance, held=wallet.held, entries=entries)
    await request.reply(text, reply_markup=await way_to_buy(request))


@command("buy", menu=gettext_lazy("Buy credits with Telegram Stars"))
@deep_link("buy")
async def buy(request: Request) -> None:
    """Show the packs for sale."""
    if request.in_private:
        await _show_offers(request)
    else:
        await request.reply(parts.only_in_private(), reply_markup=await way_to_buy(request))


@button("offers")
async def offers(press: Press) -> None:
    """Show the packs, from the button below a message that speaks of credits."""
    await _show_offers(press)


async def _show_offers(asked: Asked) -> None:
    packs = await for_sale()
    if not packs:
        await asked.reply(texts.nothing_for_sale())
        return
    wallet = await wallet_of(asked.person)
    await asked.reply(texts.offers(balance=wallet.balance), reply_markup=texts.offer_buttons(packs))


async def way_to_buy(asked: Asked) -> InlineKeyboardMarkup | None:
    """Make a button that leads to the offers; None when nothing is for sale."""
    if not await for_sale():
        return None
    url = None if asked.in_private else f"https://t.me/{asked.bot.username}?start={HERE}"
    return texts.offers_button(url=url)


@button("buy")
async def choose(press: Press) -> None:
    """Send an invoice. Forwarded, it leads to /buy instead of being paid by others."""
    invoice = await offer(account=press.account, pack_id=press.number, asked_by=press.key)
    await press.acknowledge()
    await press.bot.send_invoice(
        press.account.telegram_id,
        title=texts.title_of(invoice),
        description=texts.description_of(invoice),
        payload=str(invoice.pk),
        currency=payments.STARS,
        prices=[LabeledPrice(texts.title_of(invoice), invoice.stars)],
        start_parameter=HERE,
    )


@update("pre_checkout_query")
async def checkout(bot: BotClient, query: PreCheckoutQuery) -> None:
    """Accept a payment or refuse it. Telegram waits ten seconds, and takes silence for a refusal."""
    with translation.override(language.nearest(query.from_user.language_code or "")):
        why_not = await _why_not(query)
    try:
        await bot.answer_pre_checkout_query(query.id, ok=not why_not, error_message=why_not or None)
    except BadRequest as error:
        # Telegram has stopped waiting, and nothing is paid.
        logger.warning("a checkout was answered too late: %s", error)


async def _why_not(query: PreCheckoutQuery) -> str:
    try:
        await check_out(
            telegram_id=query.from_user.id,
            payload=query.invoice_payload,
            currency=query.currency,
            amount=query.total_amount,
        )
    except payments.CannotBuy as error:
        return str(error)
    except DATABASE_AWAY as error:
        logger.warning("a checkout is refused, for nothing can be looked up now: %s", error)
        return _("This cannot be paid just now. Please try again in a moment. Nothing was paid.")
    return ""


@message("successful_payment")
async def paid(request: Request) -> None:
    """Give the credits for a payment, once."""
    payment = request.message.successful_payment
    assert payment is not None
    charge = Charge(
        charge_id=payment.telegram_payment_charge_id,
        payload=payment.invoice_payload,
        currency=payment.currency,
        amount=payment.total_amount,
    )
    row = await credit(bot_id=request.bot.id, telegram_id=request.account.telegram_id, charge=charge)
    await request.reply(texts.paid(row, balance=(await wallet_of(request.person)).balance))


@message("refunded_payment")
async def given_back(request: Request) -> None:
    """Follow a refund, which Telegram reports even if it was not asked for here. `refunds` writes the notice."""
    payment = request.message.refunded_payment
    assert payment is not None
    await seen_outside(charge_id=payment.telegram_payment_charge_id)


@command("paysupport", menu=gettext_lazy("Help with payments"))
async def support(request: Request) -> None:
    request.must_be_private()
    await request.reply(texts.support(await latest(request.account)))


@command("terms", menu=gettext_lazy("Terms"))
async def terms(request: Request) -> None:
    await request.reply(texts.terms())
