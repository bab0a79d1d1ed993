"""/start and /help."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts import ledger
from accounts.models import Ban, CreditAccount, User
from generation.database import in_database
from generation.jobs import catalog
from generation.models import Preset
from telegram_bot import payments
from telegram_bot.errors import Refusal
from telegram_bot.models import TelegramAccount
from telegram_bot.receiving import routes
from telegram_bot.receiving.context import Request
from telegram_bot.receiving.routes import command
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import credits_of, row

for_sale = in_database(payments.for_sale)


@in_database
def wallet_of(person: User) -> CreditAccount:
    return ledger.open_account(user=person)


def preset_of(account: TelegramAccount) -> Preset:
    """Find the preset they chose, while it is enabled; else the default one."""
    chosen = account.preset
    return chosen if chosen is not None and chosen.enabled else catalog.default_preset()


@in_database
def quote_for(account: TelegramAccount) -> catalog.Quote:
    """Look up price and duration of a video for them, with the preset they chose."""
    return catalog.quote(preset=preset_of(account), user=account.user)


@in_database
def example_of() -> str:
    """Choose a prompt to try that the model on offer can draw, in the active language."""
    return str(catalog.samples_of(catalog.current_offer())[0])


@command("start", menu=gettext_lazy("Welcome"))
async def start(request: Request) -> None:
    """Show a welcome, the balance, and a prompt to try; to a banned person, why they get none."""
    if not request.person.is_active:
        raise Refusal(await in_database(Ban.words_for)(request.person))
    wallet, quote = await wallet_of(request.person), await quote_for(request.account)
    example = await example_of()
    text = texts.welcome(name=request.account.first_name, balance=wallet.balance, example=example)
    make_it = _("🎬 Make it · %(credits)s") % {"credits": credits_of(quote.cost)}
    await request.reply(text, reply_markup=row((make_it, "sample")))


@command("help", menu=gettext_lazy("Show all commands"))
async def show_help(request: Request) -> None:
    """List all commands, with the price of a video."""
    quote, shop = await quote_for(request.account), bool(await for_sale())
    await request.reply(texts.command_list(quote, routes.besides_video(shop=shop)))
