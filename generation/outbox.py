"""Outboxes: tables of what is to be delivered outside, each row tried again until it is settled.

A row is inserted in the transaction of what it tells of, so it exists if and only if that happened, and a crash loses
none. All times are PostgreSQL's. A new kind of delivery is a subclass of `OutboxRow` and one of `Channel`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Generic, Self, TypeVar

from django.db import models
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from generation.database import DATABASE_AWAY, delay, in_database

logger = logging.getLogger(__name__)

# A wake-up may be missed, and retries have times of their own.
LOOK_SECONDS = 1.0
BATCH = 100


class OutboxRow(models.Model):
    """Something to deliver. Each subclass has a `state` of its own, and says which rows are still open."""

    OPEN: ClassVar[Q]
    # The field with the time from which `age` counts.
    SINCE: ClassVar[str]
    age: timedelta | None  # annotated by `due`

    attempts = models.PositiveIntegerField(default=0, help_text="Tries that failed.")
    next_attempt_at = models.DateTimeField("next attempt", null=True, blank=True)
    error = models.CharField(max_length=500, blank=True)

    class Meta:
        abstract = True

    @classmethod
    def due(cls) -> "QuerySet[Self]":
        rows = cls._default_manager.filter(cls.OPEN, next_attempt_at__lte=Now())
        aged: QuerySet[Self] = rows.annotate(age=Now() - F(cls.SINCE))  # type: ignore[assignment]
        return aged.order_by("next_attempt_at", "pk")

    def put_off(self, *, seconds: float, error: str, counts: bool = True) -> None:
        """Try again after so many seconds; `counts` as a failed try."""
        type(self)._default_manager.filter(self.OPEN, pk=self.pk).update(
            attempts=F("attempts") + int(counts),
            next_attempt_at=Now() + timedelta(seconds=seconds),
            error=error[:500],
        )


R = TypeVar("R", bound=OutboxRow)


class TryLater(Exception):
    """A row cannot be delivered now. `wait`: seconds the receiver asks for, which makes it no failed try."""

    def __init__(self, why: str, *, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Channel(ABC, Generic[R]):
    """The delivery of the rows of one table."""

    table: type[R]
    at_once = 1
    longest_pause = 300.0

    def due(self) -> "QuerySet[R]":
        return self.table.due()

    @abstractmethod
    async def deliver(self, row: R) -> None:
        """Deliver a row and settle it; finding it settled before is no error.

        Raises:
            TryLater: it stays open. Any other error is logged, and the row tried again after the longest pause.
        """


class Outbox:
    """Delivers the rows of several channels, each row in a task of its own."""

    def __init__(
        self,
        channels: Sequence[Channel[Any]],
        *,
        start: Callable[[Coroutine[Any, Any, None]], object],
        wakeup: asyncio.Event,
        fatal: type[Exception] | tuple[()] = (),
    ) -> None:
        """`start` runs a task; `fatal` is the error that is left to it."""
        self._channels = [(channel, asyncio.Semaphore(channel.at_once)) for channel in channels]
        self._start, self._wakeup, self._fatal = start, wakeup, fatal
        self._active: set[OutboxRow] = set()
        # Channels of which more rows are due than were read.
        self._more: set[Channel[Any]] = set()
        self._stopping = False

    async def run(self) -> None:
        """Deliver what is due, at each wake-up and every second. Nothing new begins once this is cancelled."""
        try:
            while True:
                for channel, slots in self._channels:
                    await self._begin(channel, slots)
                await woken(self._wakeup, at_latest=LOOK_SECONDS)
        finally:
            self._stopping = True

    async def _begin(self, channel: Channel[Any], slots: asyncio.Semaphore) -> None:
        """Begin with rows that are due, of which no more than BATCH are in memory at a time."""
        active = self._active_of(channel)
        if (room := BATCH - len(active)) <= 0:
            return
        try:
            rows = await in_database(list)(channel.due().exclude(pk__in=active)[:room])
        except DATABASE_AWAY as error:
            logger.warning("cannot look for deliveries now: %s", error)
            return
        if len(rows) == room:
            self._more.add(channel)
        for row in rows:
            self._active.add(row)
            self._start(self._deliver(channel, slots, row))

    async def _deliver(self, channel: Channel[R], slots: asyncio.Semaphore, row: R) -> None:
        try:
            async with slots:
                if not self._stopping:
                    await self._try(channel, row)
        except DATABASE_AWAY as error:
            logger.warning("%s has to wait: %s", row, error)
        finally:
            self._active.discard(row)
            if channel in self._more and len(self._active_of(channel)) <= BATCH // 2:
                self._more.discard(channel)
                self._wakeup.set()

    def _active_of(self, channel: Channel[Any]) -> list[Any]:
        return [row.pk for row in self._active if isinstance(row, channel.table)]

    async def _try(self, channel: Channel[R], row: R) -> None:
        try:
            await channel.deliver(row)
        except DATABASE_AWAY:
            raise
        except self._fatal:
            raise
        except TryLater as error:
            pause = error.wait or delay(row.attempts + 1, longest=channel.longest_pause)
            logger.warning("%s is not delivered yet, again in %.0f s: %s", row, pause, error)
            await in_database(row.put_off)(seconds=pause, error=str(error), counts=error.wait is None)
        except Exception as error:
            # A delivery that fails in a new way must not stop the others, nor be tried without a pause.
            logger.exception("the delivery of %s failed", row)
            await in_database(row.put_off)(seconds=channel.longest_pause, error=repr(error), counts=False)


async def woken(wakeup: asyncio.Event, *, at_latest: float) -> None:
    """Wait for a wake-up, not longer than so many seconds; one since the last time counts at once."""
    try:
        async with asyncio.timeout(at_latest):
            await wakeup.wait()
    except TimeoutError:
        return
    finally:
        wakeup.clear()
