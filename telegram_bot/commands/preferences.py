"""/presets and /settings: the preset of videos, and the language the bot speaks."""

from typing import Any

from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from telegram import BotCommandScopeChat, InlineKeyboardMarkup

from accounts import languages
from generation.database import in_database
from generation.jobs import catalog
from generation.models import Preset
from telegram_bot import users
from telegram_bot.commands.welcome import preset_of
from telegram_bot.models import TelegramAccount
from telegram_bot.receiving import routes
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command
from telegram_bot.texts import accounts as texts


@in_database
def choices_for(account: TelegramAccount) -> tuple[list[catalog.Quote], Preset]:
    return catalog.quotes(user=account.user), preset_of(account)


@in_database
def choose_preset(account: TelegramAccount, name: str) -> None:
    """Store the preset. Raises UnknownPreset when staff withdrew it meanwhile."""
    account.preset = catalog.find_preset(name)
    account.save(update_fields=["preset"])


@in_database
def choose_language(account: TelegramAccount, language: str) -> None:
    account.user.language = language
    languages.remember(user=account.user, language=language)


async def _presets(asked: Asked) -> dict[str, Any]:
    quotes, chosen = await choices_for(asked.account)
    markup = InlineKeyboardMarkup.from_column(texts.preset_buttons(quotes, chosen, name="preset"))
    return {"text": texts.presets(quotes, chosen), "reply_markup": markup}


@command("presets", menu=gettext_lazy("Lengths and qualities of videos"))
async def presets(request: Request) -> None:
    await request.reply(**await _presets(request))


@button("preset")
async def use_preset(press: Press) -> None:
    """Choose in the list of presets, which shows it then."""
    await choose_preset(press.account, press.argument)
    await press.show(**await _presets(press))


async def _settings(asked: Asked) -> dict[str, Any]:
    (quotes, chosen), language = await choices_for(asked.account), asked.person.language
    markup = texts.settings_buttons(quotes, chosen, language)
    return {"text": texts.settings(chosen, language), "reply_markup": markup}


@command("settings", menu=gettext_lazy("Your preset and language"))
async def show_settings(request: Request) -> None:
    request.must_be_private()
    await request.reply(**await _settings(request))


@button("set-preset")
async def set_preset(press: Press) -> None:
    await choose_preset(press.account, press.argument)
    await press.show(**await _settings(press))


@button("language")
async def set_language(press: Press) -> None:
    """Speak another language from now on, on the web too; an empty one is the language of their Telegram."""
    if press.argument and not languages.is_supported(press.argument):
        await press.refuse(_("This language is not spoken here."))
        return
    await choose_language(press.account, press.argument)
    with translation.override(users.language_of(press.account)):
        await _show_menu(press)
        await press.show(**await _settings(press))


async def _show_menu(press: Press) -> None:
    """Set the menu of the chat, which follows the language of Telegram unless another one was chosen."""
    if not press.in_private:
        return
    scope = BotCommandScopeChat(press.chat.id)
    await press.acknowledge()
    if press.argument:
        await press.bot.set_my_commands(routes.menu(press.argument), scope=scope)
    else:
        await press.bot.delete_my_commands(scope=scope)
