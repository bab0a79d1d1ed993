"""/balance: what is there to spend, and how it came to that."""

from django.db.models import F
from django.utils.translation import gettext_lazy

from accounts import ledger
from accounts.models import CreditAccount, CreditTransaction, User
from generation.database import in_database
from telegram_bot.commands.payments import way_to_buy
from telegram_bot.requests import Request
from telegram_bot.routes import command
from telegram_bot.texts import answers

LAST_LINES = 5


@in_database
def statement_of(person: User) -> tuple[CreditAccount, list[CreditTransaction]]:
    """The wallet and the last entries that changed what is free to spend: a charge of what was held does not."""
    wallet = ledger.open_account(user=person)
    moved = wallet.transactions.exclude(posted_delta=F("held_delta"))
    return wallet, list(moved.order_by("-id")[:LAST_LINES])


@command("balance", menu=gettext_lazy("Show your credits"))
async def balance(request: Request) -> None:
    wallet, entries = await statement_of(request.person)
    text = answers.balance(free=wallet.balance, held=wallet.held, entries=entries)
    await request.reply(text, reply_markup=await way_to_buy(request))
