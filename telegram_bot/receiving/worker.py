"""Works off what is stored in the inbox: each chat in order, chats side by side, and again what a crash left over."""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from aiolimiter import AsyncLimiter
from telegram import Update
from telegram.error import Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY
from telegram_bot.models import TelegramUpdate
from telegram_bot.receiving import inbox
from telegram_bot.receiving.inbox import prune_all
from telegram_bot.sending import client, retrying
from telegram_bot.sending.client import UPDATE, BotClient, is_transient, traffic, wait_asked_for
from telegram_bot.sending.retrying import written
from telegram_bot.task_group import Crew

logger = logging.getLogger(__name__)

State = TelegramUpdate.State
PRUNE_SECONDS = 3600.0
LOOK_SECONDS = 10.0
# Telegram itself gives up on an update after a day.
GIVE_UP_SECONDS = 24 * 3600.0
CHATS_AT_ONCE = 32
# One chat may be sent a message a second; who writes faster waits, instead of stopping the bot for everybody by a 429.
BURST, BURST_SECONDS = 5, 5.0
PACED_CHATS = 1000

Handler = Callable[[Update], Awaitable[None]]
Queue = tuple[str, int]


class Worker:
    """Handles stored updates by `handle`, and settles them."""

    def __init__(self, *, bot: BotClient, crew: Crew, handle: Handler) -> None:
        self._bot, self._crew, self._handle = bot, crew, handle
        self._queues: dict[Queue, deque[inbox.Stored]] = {}
        self._taken: set[int] = set()
        self._paces: dict[Queue, AsyncLimiter] = {}
        self._slots = asyncio.Semaphore(CHATS_AT_ONCE)
        self.wake = asyncio.Event()

    def take(self, rows: list[inbox.Stored]) -> None:
        """Work these off; those that are being worked on already are left out."""
        for row in rows:
            if row.pk in self._taken:
                continue
            self._taken.add(row.pk)
            queue = inbox.queue_of(row.raw)
            if queue in self._queues:
                self._queues[queue].append(row)
            else:
                self._queues[queue] = deque([row])
                self._crew.errand(self._work_off(queue))

    async def pick_up_for_ever(self, bot_id: int) -> None:
        """Take what is in the table: what a crash left over, and what another process stored. `wake` looks at once."""
        while True:
            self.wake.clear()
            try:
                self.take(await inbox.left_over(bot_id))
            except DATABASE_AWAY as error:
                logger.warning("cannot look into the inbox now: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self.wake.wait()

    async def prune_for_ever(self) -> None:
        """Once an hour, forget what is old."""
        while True:
            try:
                if pruned := await prune_all():
                    logger.info("deleted %d rows that nobody needs any more", pruned)
            except DATABASE_AWAY as error:
                logger.warning("cannot prune the inbox now: %s", error)
            await asyncio.sleep(PRUNE_SECONDS)

    async def _work_off(self, queue: Queue) -> None:
        """The updates of one queue, one after the other."""
        rows, pace = self._queues[queue], self._pace_of(queue)
        while rows and not self._crew.stopping:
            row = rows.popleft()
            async with pace, self._slot_for(queue), client.turn():
                await self._process(row)
            self._taken.discard(row.pk)
        del self._queues[queue]

    def _slot_for(self, queue: Queue) -> AbstractAsyncContextManager[None]:
        """A checkout is refused by Telegram after ten seconds: it waits for nobody."""
        return nullcontext() if queue[0] == "pre_checkout_query" else self._slots

    def _pace_of(self, queue: Queue) -> AbstractAsyncContextManager[None]:
        if queue[0] in inbox.AT_ONCE:
            return nullcontext()
        if len(self._paces) > PACED_CHATS:
            rested = [known for known, pace in self._paces.items() if pace.has_capacity(BURST)]
            for known in rested:
                del self._paces[known]
        return self._paces.setdefault(queue, AsyncLimiter(BURST, BURST_SECONDS))

    async def _process(self, row: inbox.Stored) -> None:
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

    async def _handle_patiently(self, row: inbox.Stored, update: Update) -> None:
        for pause in retrying.delays():
            try:
                await self._handle(update)
                return
            except (TelegramError, *DATABASE_AWAY) as error:
                transient = isinstance(error, DATABASE_AWAY) or is_transient(error)
                if not transient or row.waited > GIVE_UP_SECONDS:
                    raise
                logger.warning("update %s has to wait: %s", row.update_id, error)
                await asyncio.sleep(wait_asked_for(error) or pause)
        raise AssertionError("delays have no end")

    async def _settle(self, row: inbox.Stored, state: State, error: str = "") -> None:
        traffic.count(UPDATE, state.value, seconds=row.waited)
        await written(partial(inbox.settle, row.pk, state, error), about=f"update {row.update_id}")
