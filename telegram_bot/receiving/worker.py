"""Works off the inbox: each chat in order, chats side by side, and again what a crash left over."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from aiolimiter import AsyncLimiter
from telegram import Update
from telegram.error import Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from generation.outbox import woken
from generation.retrying import delays, written
from telegram_bot.models import TelegramUpdate
from telegram_bot.receiving import inbox
from telegram_bot.sending import client
from telegram_bot.sending.client import UPDATE, BotClient, is_transient, traffic, wait_asked_for
from telegram_bot.task_group import TaskGroup

logger = logging.getLogger(__name__)

State = TelegramUpdate.State
LOOK_SECONDS = 10.0
# Telegram itself gives up on an update after a day.
GIVE_UP_SECONDS = 24 * 3600.0
CHATS_AT_ONCE = 32
# A chat may be sent a message a second: a faster sender waits, instead of stopping the bot for all others by a 429.
BURST, BURST_SECONDS = 5, 5.0
LIMITED_CHATS = 1000

Queue = tuple[str, int]

waiting = in_database(inbox.waiting)
settle = in_database(inbox.settle)


class Worker:
    """The updates at work: each is handled by `handle`, and settled."""

    def __init__(
        self, *, bot: BotClient, tasks: TaskGroup, handle: Callable[[Update], Awaitable[None]]
    ) -> None:
        self._bot, self._tasks, self._handle = bot, tasks, handle
        self._queues: dict[Queue, deque[inbox.Stored]] = {}
        self._taken: set[int] = set()
        self._limits: dict[Queue, AsyncLimiter] = {}
        self._slots = asyncio.Semaphore(CHATS_AT_ONCE)
        self._stopping = False

    def take(self, rows: list[inbox.Stored]) -> None:
        """Work these off, but for those that are being worked on already."""
        for row in rows:
            if row.pk in self._taken:
                continue
            self._taken.add(row.pk)
            queue = inbox.queue_of(row.raw)
            if queue in self._queues:
                self._queues[queue].append(row)
            else:
                self._queues[queue] = deque([row])
                self._tasks.job(self._work_off(queue))

    async def pick_up_for_ever(self, wakeup: asyncio.Event) -> None:
        """Take what is in the table, at each wake-up and every few seconds: after a crash, or from other processes.

        Nothing new begins once this is cancelled.
        """
        try:
            while True:
                try:
                    self.take(await waiting(self._bot.id))
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
        if queue[0] in inbox.AT_ONCE:
            return nullcontext()
        if len(self._limits) > LIMITED_CHATS:
            unused = [known for known, limit in self._limits.items() if limit.has_capacity(BURST)]
            for known in unused:
                del self._limits[known]
        return self._limits.setdefault(queue, AsyncLimiter(BURST, BURST_SECONDS))

    async def _process(self, row: inbox.Stored) -> None:
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

    async def _handle_patiently(self, row: inbox.Stored, update: Update) -> None:
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

    async def _settle(self, row: inbox.Stored, state: State, error: str = "") -> None:
        traffic.count(UPDATE, state.value, seconds=row.waited)
        await written(partial(settle, row.pk, state, error), about=f"update {row.update_id}")
