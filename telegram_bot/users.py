"""Telegram users as users of this service, and the language the bot speaks to them."""

from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone, translation

from accounts.models import User
from telegram_bot.models import TelegramAccount

if TYPE_CHECKING:  # processes that never speak to Telegram start without python-telegram-bot
    import telegram

# A row that is written at every message would cost each answer a commit.
SEEN_EVERY = timedelta(minutes=1)


def account_of(sender: "telegram.User") -> TelegramAccount:
    """Find the account of a sender, open it at their first message, and keep it up to date."""
    account = open_account(telegram_id=sender.id)
    now = timezone.now()
    facts: dict[str, object] = {
        "username": _storable(sender.username, 64),
        "first_name": _storable(sender.first_name, 128),
        "language_code": _storable(sender.language_code, 16),
        "blocked_at": None,
    }
    lately = account.last_seen_at is not None and now - account.last_seen_at < SEEN_EVERY
    if lately and all(getattr(account, name) == value for name, value in facts.items()):
        return account
    for name, value in (facts | {"last_seen_at": now}).items():
        setattr(account, name, value)
    account.save(update_fields=[*facts, "last_seen_at"])
    return account


def open_account(*, telegram_id: int) -> TelegramAccount:
    """Find the account with that Telegram id, or open it with a new user `tg_<id>`."""
    accounts = TelegramAccount.objects.select_related("user", "preset")
    if account := accounts.filter(telegram_id=telegram_id).first():
        return account
    try:
        with transaction.atomic():
            user = User(username=_free_username(telegram_id))
            user.came_by = f"telegram:{telegram_id}"
            user.set_unusable_password()
            user.save()
            return TelegramAccount.objects.create(telegram_id=telegram_id, user=user)
    except IntegrityError:
        # Another process opened it at the same moment.
        return accounts.get(telegram_id=telegram_id)


def language_of(account: TelegramAccount) -> str:
    """Return the language they chose, else the one of their Telegram: a code of settings.LANGUAGES."""
    return account.user.language or nearest_language(account.language_code)


def language_for(user: User) -> str:
    """Return the same for a user, who may have left Telegram since."""
    account: TelegramAccount | None = getattr(user, "telegram_account", None)
    return user.language or nearest_language(account.language_code if account else "")


def nearest_language(language_code: str) -> str:
    """Find our language nearest to Telegram's, which may be any IETF tag: `ru`, `pt-br`, or none."""
    try:
        return translation.get_supported_language_variant(language_code)
    except LookupError:
        return settings.LANGUAGE_CODE


def _free_username(telegram_id: int) -> str:
    """Choose `tg_<id>`, unless that name was taken on the web: a stranger's account is not to be taken over."""
    name, number = f"tg_{telegram_id}", 1
    while User.objects.filter(username=name).exists():
        number += 1
        name = f"tg_{telegram_id}_{number}"
    return name


def _storable(text: str | None, length: int) -> str:
    """Keep what PostgreSQL can hold: text without NUL and lone surrogates."""
    return (text or "").replace("\x00", "").encode("utf-8", "ignore").decode()[:length]
