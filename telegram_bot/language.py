"""Which language the bot speaks to somebody: the one they chose, else the one their Telegram is in."""

from django.conf import settings
from django.utils import translation

from accounts.models import User
from telegram_bot.models import TelegramAccount


def language_of(account: TelegramAccount) -> str:
    """A code of settings.LANGUAGES. Telegram's may be any IETF tag: `ru`, `pt-br`, or none."""
    return account.user.language or spoken(account.language_code)


def language_for(user: User) -> str:
    """The same for somebody who is only known as a user. Reads the database."""
    if user.language:
        return user.language
    code = TelegramAccount.objects.filter(user=user).values_list("language_code", flat=True).first()
    return spoken(code or "")


def spoken(language_code: str) -> str:
    """The nearest language we have to one of Telegram's."""
    try:
        return translation.get_supported_language_variant(language_code)
    except LookupError:
        return settings.LANGUAGE_CODE
