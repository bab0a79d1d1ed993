"""/start and /help."""

from django.utils.translation import gettext_lazy

from accounts import ledger
from accounts.models import CreditAccount, User
from generation import pricing
from generation.database import in_database
from telegram_bot.requests import Request
from telegram_bot.routes import command
from telegram_bot.texts import answers


@in_database
def wallet_of(person: User) -> CreditAccount:
    return ledger.open_account(user=person)


@in_database
def quote_for(person: User) -> pricing.Quote:
    return pricing.quote(preset=pricing.default_preset(), user=person)


@command("start", menu=gettext_lazy("Welcome"))
async def start(request: Request) -> None:
    """Welcome, balance, and something to try."""
    wallet = await wallet_of(request.person)
    await request.reply(answers.welcome(name=request.account.first_name, balance=wallet.balance))


@command("help", menu=gettext_lazy("Show all commands"))
async def show_help(request: Request) -> None:
    """All commands with what they cost."""
    await request.reply(answers.command_list(await quote_for(request.person)))
