"""/balance, /buy, the checkout, payments, /paysupport and /terms."""

import logging

from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from telegram import InlineKeyboardMarkup, LabeledPrice, PreCheckoutQuery
from telegram.error import BadRequest

from accounts import ledger
from accounts.models import CreditAccount, User
from generation.database import DATABASE_AWAY, in_database
from telegram_bot import payments, refunds, users
from telegram_bot.commands.welcome import for_sale, wallet_of
from telegram_bot.errors import Refusal
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command, deep_link, message, update
from telegram_bot.sending.client import BotClient
from telegram_bot.texts import jobs, parts
from telegram_bot.texts import payments as texts

logger = logging.getLogger(__name__)

# What stands behind `?start=` in a link to the offers.
HERE = "buy_here"
LAST_LINES = 5


@in_database
def statement_of(person: User) -> tuple[CreditAccount, list[ledger.HistoryLine]]:
    """Find the wallet and its last lines, one for each video, as on the web."""
    wallet = ledger.open_account(user=person)
    return wallet, ledger.history(account=wallet, limit=LAST_LINES)


@command("balance", menu=gettext_lazy("Show your credits"))
async def balance(request: Request) -> None:
    """Show free credits and the last entries."""
    request.must_be_private()
    wallet, latest = await statement_of(request.person)
    text = jobs.balance(free=wallet.balance, held=wallet.held, latest=latest)
    await request.reply(text, reply_markup=await way_to_buy(request))


# Telegram keeps the menu, whether or not a pack is for sale just now; without one, the reply says whom to ask.
@command("buy", menu=gettext_lazy("Get credits"))
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
        text, markup = texts.nothing_for_sale()
        await asked.reply(text, reply_markup=markup)
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
    invoice = await in_database(payments.offer)(
        account=press.account, pack_id=press.number, asked_by=press.key
    )
    await press.acknowledge()
    await press.bot.send_invoice(
        press.account.telegram_id,
        title=texts.title_of(invoice),
        description=texts.description_of(invoice),
        payload=str(invoice.pk),
        currency=payments.STARS,
        prices=[LabeledPrice(texts.title_of(invoice), invoice.stars)],
        start_parameter=HERE,
        message_thread_id=press.thread_id if press.in_private else None,
    )


@update("pre_checkout_query")
async def checkout(bot: BotClient, query: PreCheckoutQuery) -> None:
    """Accept a payment or refuse it. Telegram waits ten seconds, and takes silence for a refusal."""
    why_not = None
    with translation.override(users.nearest_language(query.from_user.language_code or "")):
        try:
            await in_database(payments.check_out)(query)
        except Refusal as error:
            why_not = str(error)
        except DATABASE_AWAY as error:
            logger.warning("a checkout is refused, for nothing can be looked up now: %s", error)
            why_not = _("This cannot be paid just now. Please try again in a moment. Nothing was paid.")
    try:
        await bot.answer_pre_checkout_query(query.id, ok=not why_not, error_message=why_not)
    except BadRequest as error:
        # Telegram has stopped waiting, and nothing is paid.
        logger.warning("a checkout was answered too late: %s", error)


@message("successful_payment")
async def paid(request: Request) -> None:
    """Give the credits for a payment, once."""
    charge = request.message.successful_payment
    assert charge is not None
    row = await in_database(payments.credit)(
        bot_id=request.bot.id, telegram_id=request.account.telegram_id, charge=charge
    )
    await request.reply(texts.paid(row, balance=(await wallet_of(request.person)).balance))


@message("refunded_payment")
async def given_back(request: Request) -> None:
    """Follow a refund, which Telegram reports even if it was not asked for here. `refunds` writes the notice."""
    payment = request.message.refunded_payment
    assert payment is not None
    await in_database(refunds.seen_outside)(charge_id=payment.telegram_payment_charge_id)


@command("paysupport", menu=gettext_lazy("Help with payments"))
async def support(request: Request) -> None:
    request.must_be_private()
    await request.reply(texts.support(await in_database(payments.latest)(request.account)))


@command("terms", menu=gettext_lazy("Terms"))
async def terms(request: Request) -> None:
    text, markup = texts.terms()
    await request.reply(text, reply_markup=markup)
