"""Messages that the site, the admin and the books have for somebody in Telegram: written down by whoever has one, sent
by the bot's process (`notice_delivery`).
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from generation.database import in_database
from telegram_bot import bell
from telegram_bot.bot_token import bot_id_of
from telegram_bot.models import Notice

if TYPE_CHECKING:  # processes that only write a notice down start sooner without python-telegram-bot
    from telegram import InlineKeyboardButton

State = Notice.State
GIVE_UP_AFTER = timedelta(days=1)
KEEP = timedelta(days=7)

Rows = Sequence[Sequence["InlineKeyboardButton"]]


@transaction.atomic
def tell(*, chat_id: int, text: str, buttons: Rows = ()) -> None:
    """Have the bot say something, in Telegram's HTML; when the current transaction commits."""
    keyboard = [[button.to_dict() for button in row] for row in buttons]
    bot_id = bot_id_of(settings.TELEGRAM_BOT_TOKEN)
    Notice.objects.create(bot_id=bot_id, chat_id=chat_id, text=text, keyboard=keyboard)
    bell.ring(bell.NOTICES)


@in_database
def due(bot_id: int) -> list[Notice]:
    rows = Notice.objects.filter(bot_id=bot_id, state=State.PENDING, next_attempt_at__lte=Now())
    return list(rows.order_by("pk")[:100])


@in_database
def settle(row: Notice, state: State, error: str = "") -> None:
    """Nothing more will be done about it."""
    sent_at = Now() if state == State.SENT else None
    Notice.objects.filter(pk=row.pk).update(state=state, error=error[:500], sent_at=sent_at)


@in_database
def try_later(row: Notice, *, error: str, seconds: float) -> None:
    when = Now() + timedelta(seconds=seconds)
    Notice.objects.filter(pk=row.pk).update(
        attempts=row.attempts + 1, next_attempt_at=when, error=error[:500]
    )


@in_database
def is_too_old(row: Notice) -> bool:
    return Notice.objects.filter(pk=row.pk, created_at__lt=Now() - GIVE_UP_AFTER).exists()


def prune() -> int:
    """Forget what was sent a week ago."""
    old = Notice.objects.filter(created_at__lt=Now() - KEEP).exclude(state=State.PENDING)
    return old.delete()[0]
