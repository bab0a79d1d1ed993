"""/balance: what is there to spend."""

from django.utils.translation import gettext_lazy

from telegram_bot.commands.welcome import wallet_of
from telegram_bot.requests import Request
from telegram_bot.routes import command
from telegram_bot.texts import answers


@command("balance", menu=gettext_lazy("Show your credits"))
async def balance(request: Request) -> None:
    wallet = await wallet_of(request.person)
    await request.reply(answers.balance(free=wallet.balance, held=wallet.held))
