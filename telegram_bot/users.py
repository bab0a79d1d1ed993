"""Telegram users as users of this service."""

from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

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
            user = User.objects.create_user(username=_free_username(telegram_id))
            return TelegramAccount.objects.create(telegram_id=telegram_id, user=user)
    except IntegrityError:
        # Another process opened it at the same moment.
        return accounts.get(telegram_id=telegram_id)


def mark_blocked(*, chat_id: int) -> None:
    """Note that the bot was blocked: a private chat has the id of the person."""
    TelegramAccount.objects.filter(telegram_id=chat_id, blocked_at=None).update(blocked_at=Now())


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
