"""The inbox: each update is stored before it is handled, and acknowledged only when it is stored.

Telegram forgets an update once a higher offset is asked for. The Updater of python-telegram-bot asks before handlers
have run, so a killed process loses what it had in memory. Here a batch is committed first, as it came over the wire,
keyed by bot and update id; a batch that comes twice is stored once. The worker handles what is stored: each chat in
order, chats side by side, and again what a crash left over.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Any

from aiolimiter import AsyncLimiter
from django.db.models import F
from django.db.models.functions import Now
from telegram import Update
from telegram.error import Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, delays, in_database, written
from generation.outbox import woken
from telegram_bot.models import TelegramUpdate
from telegram_bot.sending import client
from telegram_bot.sending.client import UPDATE, BotClient, is_transient, traffic, wait_asked_for

logger = logging.getLogger(__name__)

State = TelegramUpdate.State
Queue = tuple[str, int]
KEEP = timedelta(days=7)
# These wait behind nothing: a button spins, or a payment hangs, until they are answered.
AT_ONCE = ("callback_query", "pre_checkout_query")
LOOK_SECONDS = 10.0
# Telegram itself gives up on an update after a day.
GIVE_UP_SECONDS = 24 * 3600.0
CHATS_AT_ONCE = 32
# A chat may be sent a message a second: a faster sender waits, instead of stopping the bot for all others by a 429.
BURST, BURST_SECONDS = 5, 5.0
LIMITED_CHATS = 1000


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


def _settle(row_id: int, state: str, error: str) -> None:
    TelegramUpdate.objects.filter(pk=row_id).update(state=state, error=error[:500], settled_at=Now())


def prune() -> int:
    """Delete updates that were settled a week ago."""
    return TelegramUpdate.objects.filter(settled_at__lt=Now() - KEEP).delete()[0]


def has_id(update: dict[str, Any]) -> bool:
    """Check that an update has a number, by which it is identified and acknowledged."""
    return type(update.get("update_id")) is int and abs(update["update_id"]) < 2**63


def _queue_of(raw: str) -> Queue:
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


class Worker:
    """The updates at work: each is handled by `handle`, and settled."""

    def __init__(
        self,
        *,
        bot: BotClient,
        start: Callable[[Coroutine[Any, Any, None]], object],
        handle: Callable[[Update], Awaitable[None]],
    ) -> None:
        """`start` runs a task, which is to be brought to its end."""
        self._bot, self._start, self._handle = bot, start, handle
        self._queues: dict[Queue, deque[Stored]] = {}
        self._taken: set[int] = set()
        self._limits: dict[Queue, AsyncLimiter] = {}
        self._slots = asyncio.Semaphore(CHATS_AT_ONCE)
        self._stopping = False

    def take(self, rows: list[Stored]) -> None:
        """Work these off, but for those that are being worked on already."""
        for row in rows:
            if row.pk in self._taken:
                continue
            self._taken.add(row.pk)
            queue = _queue_of(row.raw)
            if queue in self._queues:
                self._queues[queue].append(row)
            else:
                self._queues[queue] = deque([row])
                self._start(self._work_off(queue))

    async def pick_up_for_ever(self, wakeup: asyncio.Event) -> None:
        """Take what is in the table, at each wake-up and every few seconds: after a crash, or from other processes.

        Nothing new begins once this is cancelled.
        """
        try:
            while True:
                try:
                    self.take(await in_database(waiting)(self._bot.id))
                except DATABASE_AWAY as error:
                    logger.warning("cannot look into the inbox now: %s", error)
                await woken(wakeup, at_latest=LOOK_SECONDS)
        finally:
            self._stopping = True

    async def _work_off(self, queue: Queue) -> None:
        """Handle the updates of one queue, one after the other."""
        rows, limit = self._queues[queue], self._limit_of(queue)
        # A checkout is refused by Telegram after ten seconds: it waits for nothing.
        slot = nullcontext() if queue[0] == "pre_checkout_query" else self._slots
        while rows and not self._stopping:
            row = rows.popleft()
            async with limit, slot, client.turn():
                await self._process(row)
            self._taken.discard(row.pk)
        del self._queues[queue]

    def _limit_of(self, queue: Queue) -> AbstractAsyncContextManager[None]:
        if queue[0] in AT_ONCE:
            return nullcontext()
        if len(self._limits) > LIMITED_CHATS:
            unused = [known for known, limit in self._limits.items() if limit.has_capacity(BURST)]
            for known in unused:
                del self._limits[known]
        return self._limits.setdefault(queue, AsyncLimiter(BURST, BURST_SECONDS))

    async def _process(self, row: Stored) -> None:
        """Handle one update; trouble that passes is waited out, any other error puts it aside with its reason."""
        try:
            update = Update.de_json(json.loads(row.raw), self._bot)
        except Exception as error:
            logger.exception("update %s cannot be parsed", row.update_id)
            await self._settle(row, State.FAILED, f"cannot be parsed: {error!r}")
            return
        try:
            await self._handle_patiently(row, update)
        except InvalidToken:
            raise
        except Forbidden as error:
            await self._settle(row, State.DONE, f"no answer possible: {error}")
        except Exception as error:
            logger.exception("update %s could not be handled", row.update_id)
            await self._settle(row, State.FAILED, repr(error))
        else:
            await self._settle(row, State.DONE)

    async def _handle_patiently(self, row: Stored, update: Update) -> None:
        for pause in delays():
            try:
                await self._handle(update)
                return
            except (TelegramError, *DATABASE_AWAY) as error:
                transient = isinstance(error, DATABASE_AWAY) or is_transient(error)
                if not transient or row.waited > GIVE_UP_SECONDS:
                    raise
                logger.warning("update %s has to wait: %s", row.update_id, error)
                await asyncio.sleep(wait_asked_for(error) or pause)

    async def _settle(self, row: Stored, state: State, error: str = "") -> None:
        traffic.count(UPDATE, state.value, seconds=row.waited)
        await written(partial(in_database(_settle), row.pk, state, error), about=f"update {row.update_id}")
