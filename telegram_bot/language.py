"""The language the bot speaks to a person: the one they chose, else the one of their Telegram."""

from django.conf import settings
from django.utils import translation

from accounts.models import User
from telegram_bot.models import TelegramAccount


def language_of(account: TelegramAccount) -> str:
    """Return a code of settings.LANGUAGES."""
    return account.user.language or nearest(account.language_code)


def language_for(user: User) -> str:
    """Read the language of a user from the database."""
    if user.language:
        return user.language
    code = TelegramAccount.objects.filter(user=user).values_list("language_code", flat=True).first()
    return nearest(code or "")


def nearest(language_code: str) -> str:
    """Find our language nearest to Telegram's, which may be any IETF tag: `ru`, `pt-br`, or none."""
    try:
        return translation.get_supported_language_variant(language_code)
    except LookupError:
        return settings.LANGUAGE_CODE
