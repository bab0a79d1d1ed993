"""/presets and /settings: what videos are made with, and the language the bot speaks."""

from typing import Any

from django.utils import translation
from django.utils.translation import gettext_lazy
from telegram import BotCommandScopeChat

from accounts import languages
from generation.database import in_database
from generation.jobs import catalog
from telegram_bot import language
from telegram_bot.models import TelegramAccount
from telegram_bot.receiving import routes
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command
from telegram_bot.texts import accounts as words


@in_database
def offer_for(account: TelegramAccount) -> words.Offer:
    """The presets with what they cost this person, and the one that is used for them."""
    quotes = catalog.quotes(user=account.user)
    chosen = account.preset if account.preset is not None and account.preset.enabled else None
    return words.Offer(quotes, chosen or catalog.default_preset())


@in_database
def choose_preset(account: TelegramAccount, name: str) -> None:
    """Raises UnknownPreset: staff withdrew it meanwhile."""
    account.preset = catalog.find_preset(name)
    account.save(update_fields=["preset"])


@in_database
def choose_language(account: TelegramAccount, language: str) -> None:
    account.user.language = language
    languages.remember(user=account.user, language=language)


# --- Presets ----------------------------------------------------------------------------------------------------------


@command("presets", menu=gettext_lazy("Lengths and qualities of videos"))
async def presets(request: Request) -> None:
    await request.reply(**await _presets(request))


@button("preset")
async def use_preset(press: Press) -> None:
    """Chosen in the list of presets, which shows it then."""
    await choose_preset(press.account, press.argument)
    await press.show(**await _presets(press))


async def _presets(asked: Asked) -> dict[str, Any]:
    offer = await offer_for(asked.account)
    return {"text": words.presets(offer), "reply_markup": words.preset_buttons(offer, name="preset")}


# --- Settings ---------------------------------------------------------------------------------------------------------


@command("settings", menu=gettext_lazy("Your preset and language"))
async def show_settings(request: Request) -> None:
    await request.reply(**await _settings(request))


@button("set-preset")
async def set_preset(press: Press) -> None:
    """Chosen among the settings."""
    await choose_preset(press.account, press.argument)
    await press.show(**await _settings(press))


@button("language")
async def set_language(press: Press) -> None:
    """From now on everything is said in it, on the web too; an empty one is the language of their Telegram."""
    if press.argument and not languages.is_supported(press.argument):
        await press.refuse(words.unknown_language())
        return
    await choose_language(press.account, press.argument)
    with translation.override(language.language_of(press.account)):
        await _show_menu(press)
        await press.show(**await _settings(press))


async def _show_menu(press: Press) -> None:
    """The commands behind the menu button follow the language of Telegram unless another one was chosen."""
    if not press.in_private:
        return
    scope = BotCommandScopeChat(press.chat.id)
    await press.acknowledge()
    if press.argument:
        await press.bot.set_my_commands(routes.menu(press.argument), scope=scope)
    else:
        await press.bot.delete_my_commands(scope=scope)


async def _settings(asked: Asked) -> dict[str, Any]:
    offer = await offer_for(asked.account)
    chosen = asked.person.language
    return {"text": words.settings(offer, chosen), "reply_markup": words.settings_buttons(offer, chosen)}
