"""The outbox: due rows are delivered, trouble is tried again, and one row's trouble stops no other."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db.models import F
from django.db.models.functions import Now

from generation.database import in_database
from generation.outbox import BATCH, Channel, Outbox, TryLater
from telegram_bot.models import ChatNotice

pytestmark = pytest.mark.django_db(transaction=True)


class Fatal(Exception):
    """An error that ends the process."""


class Delivery(Channel[ChatNotice]):
    """Delivers every notice whose text is no trouble."""

    table = ChatNotice

    def __init__(self, **trouble: Exception) -> None:
        self.trouble = trouble
        self.delivered: list[str] = []

    async def deliver(self, row: ChatNotice) -> None:
        if row.text in self.trouble:
            raise self.trouble[row.text]
        self.delivered.append(row.text)
        await in_database(ChatNotice.objects.filter(pk=row.pk).update)(state=ChatNotice.State.SENT)


def notice(text: str, **values: Any) -> ChatNotice:
    return ChatNotice.objects.create(bot_id=1, chat_id=1, text=text, next_attempt_at=Now(), **values)


def wait_of(row: ChatNotice) -> float:
    """Seconds until the row is due."""
    waits = ChatNotice.objects.annotate(wait=F("next_attempt_at") - Now()).values_list("wait", flat=True)
    return waits.get(pk=row.pk).total_seconds()


@async_to_sync
async def look_once(channel: Channel[Any]) -> list[BaseException | None]:
    """Let the loop look once; returns what each delivery that it began raised."""
    tasks: list[asyncio.Task[None]] = []

    def start(delivery: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.get_running_loop().create_task(delivery))

    outbox = Outbox([channel], start=start, wakeup=asyncio.Event(), fatal=Fatal)
    loop = asyncio.get_running_loop().create_task(outbox.run())
    async with asyncio.timeout(10):
        while not tasks or not all(task.done() for task in tasks):
            await asyncio.sleep(0.01)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    return [task.exception() for task in tasks]


def test_due_rows_are_delivered_in_their_order_and_no_others():
    first, second = notice("first"), notice("second")
    notice("later", state=ChatNotice.State.SENT)
    ChatNotice.objects.filter(pk=second.pk).update(next_attempt_at=Now() - timedelta(seconds=9))
    ChatNotice.objects.filter(pk=notice("next week").pk).update(next_attempt_at=Now() + timedelta(days=7))
    delivery = Delivery()
    assert look_once(delivery) == [None, None]
    assert delivery.delivered == ["second", "first"]
    first.refresh_from_db()
    assert first.state == ChatNotice.State.SENT


def test_due_rows_are_read_in_pages_and_all_are_delivered():
    class Held(Delivery):
        gate = asyncio.Event()

        async def deliver(self, row: ChatNotice) -> None:
            await self.gate.wait()
            await super().deliver(row)

    ChatNotice.objects.bulk_create(
        ChatNotice(bot_id=1, chat_id=1, text=str(number), next_attempt_at=Now()) for number in range(250)
    )
    delivery = Held()

    @async_to_sync
    async def deliver_all() -> int:
        tasks: set[asyncio.Task[None]] = set()

        def start(work: Coroutine[Any, Any, None]) -> None:
            tasks.add(asyncio.get_running_loop().create_task(work))

        wakeup = asyncio.Event()
        loop = asyncio.get_running_loop().create_task(
            Outbox([delivery], start=start, wakeup=wakeup, fatal=Fatal).run()
        )
        async with asyncio.timeout(30):
            for _ in range(4):  # looks, while nothing gets on
                wakeup.set()
                while wakeup.is_set():
                    await asyncio.sleep(0.01)
            in_memory = len(tasks)
            delivery.gate.set()
            while len(delivery.delivered) < 250:
                await asyncio.sleep(0.01)
        loop.cancel()
        await asyncio.gather(loop, *tasks, return_exceptions=True)
        return in_memory

    assert deliver_all() == BATCH
    assert sorted(map(int, delivery.delivered)) == list(range(250))


def test_a_row_that_fails_is_tried_later_and_later_and_stops_no_other():
    busy = notice("busy", attempts=3)
    delivery = Delivery(busy=TryLater("no answer"))
    notice("fine")
    assert look_once(delivery) == [None, None]
    assert delivery.delivered == ["fine"]
    busy.refresh_from_db()
    assert (busy.state, busy.attempts, busy.error) == ("pending", 4, "no answer")
    assert 5 < wait_of(busy) < 10  # 2 to the third, a fifth of it by chance


def test_a_wait_that_the_receiver_asks_for_is_no_failed_try():
    flooded = notice("flooded")
    look_once(Delivery(flooded=TryLater("slow down", wait=100)))
    flooded.refresh_from_db()
    assert flooded.attempts == 0
    assert 90 < wait_of(flooded) <= 100


def test_an_error_that_no_code_expects_has_the_longest_pause():
    odd = notice("odd")
    assert look_once(Delivery(odd=ZeroDivisionError("of course"))) == [None]
    odd.refresh_from_db()
    assert (odd.state, odd.error) == ("pending", "ZeroDivisionError('of course')")
    assert 290 < wait_of(odd) <= Delivery.longest_pause


def test_a_fatal_error_is_left_to_the_process_and_changes_no_row():
    row, error = notice("token"), Fatal()
    assert look_once(Delivery(token=error)) == [error]
    row.refresh_from_db()
    assert (row.state, row.attempts, row.error) == ("pending", 0, "")
