"""Updates are stored before anything is done about them, and acknowledged only when they are stored.

Telegram forgets an update once a higher offset is asked for; python-telegram-bot's own Updater asks before its handlers
have run, and a killed process loses what it had in memory. Here a batch is committed first, as it came over the wire,
keyed by bot and update id; a batch that comes twice is stored once. What is waiting in the table is worked off in order
of each chat, chats side by side, and taken up again after a crash.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

from aiolimiter import AsyncLimiter
from django.utils import timezone
from telegram import Update
from telegram.error import Conflict, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from telegram_bot import backoff, lane
from telegram_bot.client import BotClient, is_transient, wait_asked_for
from telegram_bot.crew import Crew
from telegram_bot.marks import written
from telegram_bot.models import TelegramUpdate

logger = logging.getLogger(__name__)

State = TelegramUpdate.State
POLL_SECONDS = 30
KEEP = timedelta(days=7)
PRUNE_SECONDS = 3600.0
# Telegram itself gives up on an update after a day.
GIVE_UP_AFTER = timedelta(days=1)
CHATS_AT_ONCE = 32
# One chat may be sent a message a second; who writes faster waits, instead of stopping the bot for everybody by a 429.
BURST, BURST_SECONDS = 5, 5.0
PACED_CHATS = 1000

Handler = Callable[[Update], Awaitable[None]]


# --- The table --------------------------------------------------------------------------------------------------------


@in_database
def store(bot_id: int, batch: list[dict[str, Any]]) -> list[TelegramUpdate]:
    """Keep a batch as it came; the rows of it that nothing was done about yet, oldest first."""
    rows = [
        TelegramUpdate(bot_id=bot_id, update_id=update["update_id"], raw=json.dumps(update))
        for update in batch
        if has_id(update)
    ]
    TelegramUpdate.objects.bulk_create(rows, ignore_conflicts=True)
    return _waiting(bot_id, update_ids=[row.update_id for row in rows])


@in_database
def left_over(bot_id: int) -> list[TelegramUpdate]:
    """What an earlier process stored and did not finish."""
    return _waiting(bot_id)


def _waiting(bot_id: int, update_ids: list[int] | None = None) -> list[TelegramUpdate]:
    rows = TelegramUpdate.objects.filter(bot_id=bot_id, state=State.RECEIVED).order_by("id")
    return list(rows if update_ids is None else rows.filter(update_id__in=update_ids))


@in_database
def settle(row_id: int, state: str, error: str) -> None:
    """Nothing more will be done about it."""
    TelegramUpdate.objects.filter(pk=row_id).update(state=state, error=error[:500], settled_at=timezone.now())


@in_database
def prune() -> int:
    """Delete what was settled a week ago; how many there were."""
    return TelegramUpdate.objects.filter(settled_at__lt=timezone.now() - KEEP).delete()[0]


def has_id(update: dict[str, Any]) -> bool:
    """Only an update with a number can be told from others and acknowledged."""
    return type(update.get("update_id")) is int and abs(update["update_id"]) < 2**63


def chat_of(raw: str) -> int:
    """The chat an update is about, so that its updates are handled in order; 0 when it says none."""
    for part in json.loads(raw).values():
        if not isinstance(part, dict):
            continue
        for place in (part.get("chat"), part.get("from")):
            if isinstance(place, dict) and isinstance(place.get("id"), int):
                return int(place["id"])
    return 0


# --- The loops --------------------------------------------------------------------------------------------------------


class Inbox:
    """Polls Telegram, stores, and works off what is stored."""

    def __init__(self, *, bot: BotClient, bot_id: int, crew: Crew, handle: Handler) -> None:
        self._bot, self._bot_id, self._crew, self._handle = bot, bot_id, crew, handle
        self._chats: dict[int, deque[TelegramUpdate]] = {}
        self._taken: set[int] = set()
        self._paces: dict[int, AsyncLimiter] = {}
        self._slots = asyncio.Semaphore(CHATS_AT_ONCE)

    async def run(self) -> None:
        """Take up what was left over, then poll for ever."""
        self._enqueue(await left_over(self._bot_id))
        # Ids are drawn at random after an idle week: an offset is used to acknowledge a batch, and then forgotten.
        offset: int | None = None
        waits = backoff.delays(longest=30.0)
        while True:
            try:
                batch = await self._bot.get_raw_updates(offset=offset, timeout=POLL_SECONDS)
                self._enqueue(await store(self._bot_id, batch))
            except (TelegramError, *DATABASE_AWAY) as error:
                await self._wait_out(error, next(waits))
                continue
            ids = [update["update_id"] for update in batch if has_id(update)]
            if len(ids) < len(batch):
                logger.error("Telegram sent %d updates without a number", len(batch) - len(ids))
            offset = max(ids) + 1 if ids else None
            waits = backoff.delays(longest=30.0)

    async def prune_for_ever(self) -> None:
        """Once an hour, forget what is old."""
        while True:
            try:
                if pruned := await prune():
                    logger.info("deleted %d updates that were settled a week ago", pruned)
            except DATABASE_AWAY as error:
                logger.warning("cannot prune the inbox now: %s", error)
            await asyncio.sleep(PRUNE_SECONDS)

    async def _wait_out(self, error: Exception, pause: float) -> None:
        if isinstance(error, InvalidToken):
            raise error
        if isinstance(error, Conflict):
            logger.warning("Telegram says that somebody else polls for this bot, too: %s", error)
        else:
            logger.warning("cannot fetch updates, trying again: %s", error)
        await asyncio.sleep(wait_asked_for(error) or pause)

    def _enqueue(self, rows: list[TelegramUpdate]) -> None:
        for row in rows:
            if row.pk in self._taken:
                continue
            self._taken.add(row.pk)
            chat = chat_of(row.raw)
            if chat in self._chats:
                self._chats[chat].append(row)
            else:
                self._chats[chat] = deque([row])
                self._crew.errand(self._work_off(chat))

    async def _work_off(self, chat: int) -> None:
        """The updates of one chat, one after the other."""
        rows, pace = self._chats[chat], self._pace_of(chat)
        while rows and not self._crew.stopping:
            row = rows.popleft()
            async with pace, self._slots, lane.turn():
                await self._process(row)
            self._taken.discard(row.pk)
        del self._chats[chat]

    def _pace_of(self, chat: int) -> AsyncLimiter:
        if len(self._paces) > PACED_CHATS:
            rested = [known for known, pace in self._paces.items() if pace.has_capacity(BURST)]
            for known in rested:
                del self._paces[known]
        return self._paces.setdefault(chat, AsyncLimiter(BURST, BURST_SECONDS))

    async def _process(self, row: TelegramUpdate) -> None:
        """Handle one update; what can be mended by waiting is waited for, what cannot is put aside with its reason."""
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

    async def _handle_patiently(self, row: TelegramUpdate, update: Update) -> None:
        for pause in backoff.delays():
            try:
                await self._handle(update)
                return
            except (TelegramError, *DATABASE_AWAY) as error:
                transient = isinstance(error, DATABASE_AWAY) or is_transient(error)
                if not transient or timezone.now() - row.received_at > GIVE_UP_AFTER:
                    raise
                logger.warning("update %s has to wait: %s", row.update_id, error)
                await asyncio.sleep(wait_asked_for(error) or pause)
        raise AssertionError("delays have no end")

    async def _settle(self, row: TelegramUpdate, state: State, error: str = "") -> None:
        await written(partial(settle, row.pk, state, error), about=f"update {row.update_id}")
