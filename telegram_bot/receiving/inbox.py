"""The inbox: each update is stored before it is handled, and acknowledged only when it is stored.

Telegram forgets an update once a higher offset is asked for. The Updater of python-telegram-bot asks before handlers
have run, so a killed process loses what it had in memory. Here a batch is committed first, as it came over the wire,
keyed by bot and update id; a batch that comes twice is stored once. `updates` puts in, `worker` works off.
"""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from telegram_bot.models import TelegramUpdate

State = TelegramUpdate.State
KEEP = timedelta(days=7)
# These wait behind nothing: a button spins, or a payment hangs, until they are answered.
AT_ONCE = ("callback_query", "pre_checkout_query")


@dataclass(frozen=True)
class Stored:
    """An update that is not handled yet; `age` is how old it was when it was read, at `read_at`."""

    pk: int
    update_id: int
    raw: str
    age: timedelta
    read_at: float = field(default_factory=monotonic)

    @property
    def waited(self) -> float:
        """Count the seconds since it was stored."""
        return self.age.total_seconds() + monotonic() - self.read_at


def store(bot_id: int, batch: list[dict[str, Any]]) -> list[Stored]:
    """Keep a batch as it came; returns its rows that are not handled yet, oldest first."""
    rows = [
        TelegramUpdate(bot_id=bot_id, update_id=update["update_id"], raw=json.dumps(update))
        for update in batch
        if has_id(update)
    ]
    TelegramUpdate.objects.bulk_create(rows, ignore_conflicts=True)
    return waiting(bot_id, update_id__in=[row.update_id for row in rows])


def waiting(bot_id: int, **narrowed: Any) -> list[Stored]:
    """Read the updates that are stored and not settled, oldest first; `narrowed` by fields."""
    rows = TelegramUpdate.objects.filter(bot_id=bot_id, state=State.RECEIVED, **narrowed).order_by("id")
    return [Stored(*facts) for facts in rows.values_list("pk", "update_id", "raw", Now() - F("received_at"))]


def settle(row_id: int, state: str, error: str) -> None:
    """Mark an update as handled, or as one that cannot be."""
    TelegramUpdate.objects.filter(pk=row_id).update(state=state, error=error[:500], settled_at=Now())


def prune() -> int:
    """Delete updates that were settled a week ago."""
    return TelegramUpdate.objects.filter(settled_at__lt=Now() - KEEP).delete()[0]


def has_id(update: dict[str, Any]) -> bool:
    """Check that an update has a number, by which it is identified and acknowledged."""
    return type(update.get("update_id")) is int and abs(update["update_id"]) < 2**63


def queue_of(raw: str) -> tuple[str, int]:
    """Find the queue of an update, which is handled in order: a chat, or one person's presses or payments.

    The number is 0 when the update names neither chat nor person.
    """
    for kind, part in json.loads(raw).items():
        if not isinstance(part, dict):
            continue
        for place in (part.get("chat"), part.get("from")):
            if isinstance(place, dict) and isinstance(place.get("id"), int):
                return (kind if kind in AT_ONCE else "chat"), int(place["id"])
    return "chat", 0
