"""/start and /help."""

from django.utils.translation import gettext_lazy

from accounts import ledger
from accounts.models import CreditAccount, User
from generation.database import in_database
from generation.jobs import catalog
from telegram_bot import payments
from telegram_bot.models import TelegramAccount
from telegram_bot.receiving import routes
from telegram_bot.receiving.context import Request
from telegram_bot.receiving.routes import command
from telegram_bot.texts import jobs

is_anything_for_sale = in_database(payments.is_anything_for_sale)


@in_database
def wallet_of(person: User) -> CreditAccount:
    return ledger.open_account(user=person)


@in_database
def quote_for(account: TelegramAccount) -> catalog.Quote:
    """What a video costs them and how long it takes, with the preset they chose."""
    chosen = account.preset if account.preset is not None and account.preset.enabled else None
    return catalog.quote(preset=chosen or catalog.default_preset(), user=account.user)


@command("start", menu=gettext_lazy("Welcome"))
async def start(request: Request) -> None:
    """Welcome, balance, and something to try."""
    wallet, quote = await wallet_of(request.person), await quote_for(request.account)
    text = jobs.welcome(name=request.account.first_name, balance=wallet.balance)
    await request.reply(text, reply_markup=jobs.of_sample(cost=quote.cost))


@command("help", menu=gettext_lazy("Show all commands"))
async def show_help(request: Request) -> None:
    """All commands with what they cost."""
    quote, shop = await quote_for(request.account), await is_anything_for_sale()
    await request.reply(jobs.command_list(quote, routes.besides_video(shop=shop)))
