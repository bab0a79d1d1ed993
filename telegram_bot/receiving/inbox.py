"""What is forgotten: updates and notices of last week, links of last month."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from generation.database import in_database
from telegram_bot import linking, tokens
from telegram_bot.models import TelegramUpdate
from telegram_bot.sending import notices

State = TelegramUpdate.State
KEEP = timedelta(days=7)
# What waits behind nothing: the person sees their button spin, or their payment hang, until it is answered.
AT_ONCE = ("callback_query", "pre_checkout_query")


@dataclass(frozen=True)
class Stored:
    """An update that nothing was done about yet; `age` is how old it was when it was read, at `read_at`."""

    pk: int
    update_id: int
    raw: str
    age: timedelta
    read_at: float = field(default_factory=monotonic)

    @property
    def waited(self) -> float:
        """Seconds since it was stored."""
        return self.age.total_seconds() + monotonic() - self.read_at


def store_now(bot_id: int, batch: list[dict[str, Any]]) -> list[Stored]:
    """Keep a batch as it came; the rows of it that nothing was done about yet, oldest first."""
    rows = [
        TelegramUpdate(bot_id=bot_id, update_id=update["update_id"], raw=json.dumps(update))
        for update in batch
        if has_id(update)
    ]
    TelegramUpdate.objects.bulk_create(rows, ignore_conflicts=True)
    return _waiting(bot_id, update_ids=[row.update_id for row in rows])


store = in_database(store_now)


@in_database
def left_over(bot_id: int) -> list[Stored]:
    """What is stored and not settled."""
    return _waiting(bot_id)


def _waiting(bot_id: int, update_ids: list[int] | None = None) -> list[Stored]:
    rows = TelegramUpdate.objects.filter(bot_id=bot_id, state=State.RECEIVED).order_by("id")
    if update_ids is not None:
        rows = rows.filter(update_id__in=update_ids)
    age = Now() - F("received_at")
    return [Stored(*facts) for facts in rows.values_list("pk", "update_id", "raw", age)]


@in_database
def settle(row_id: int, state: str, error: str) -> None:
    """Nothing more will be done about it."""
    TelegramUpdate.objects.filter(pk=row_id).update(state=state, error=error[:500], settled_at=Now())


@in_database
def prune() -> int:
    """Delete what was settled a week ago; how many there were."""
    return TelegramUpdate.objects.filter(settled_at__lt=Now() - KEEP).delete()[0]


def has_id(update: dict[str, Any]) -> bool:
    """Only an update with a number can be told from others and acknowledged."""
    return type(update.get("update_id")) is int and abs(update["update_id"]) < 2**63


def queue_of(raw: str) -> tuple[str, int]:
    """Updates of one queue are handled in order: those of a chat, presses of one person, payments of one person.

    The number is 0 when the update says neither chat nor person.
    """
    for kind, part in json.loads(raw).items():
        if not isinstance(part, dict):
            continue
        for place in (part.get("chat"), part.get("from")):
            if isinstance(place, dict) and isinstance(place.get("id"), int):
                return (kind if kind in AT_ONCE else "chat"), int(place["id"])
    return "chat", 0


# The table of updates: each is stored before anything is done about it, and acknowledged only when it is stored.
#
# Telegram forgets an update once a higher offset is asked for; the Updater of python-telegram-bot asks before handlers
# have run, and a killed process loses what it had in memory. Here a batch is committed first, as it came over the wire,
# keyed by bot and update id; a batch that comes twice is stored once. `polling` puts in, `worker` works off.
#


async def prune_all() -> int:
    """How many rows there were."""
    return await prune() + await _the_rest()


@in_database
def _the_rest() -> int:
    return notices.prune() + linking.prune() + tokens.prune()
