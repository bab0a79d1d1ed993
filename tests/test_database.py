"""The bridge from asyncio to the ORM: a slow call delays no other, and a task's call keeps the task's own thread."""

import asyncio
import threading

import pytest
from asgiref.sync import async_to_sync

from generation.database import in_database

pytestmark = pytest.mark.django_db  # the bridge looks at the connections of its thread


def test_a_slow_call_delays_no_other() -> None:
    """Each of the two returns only when both are under way."""
    together = threading.Barrier(2, timeout=10)

    async def both() -> None:
        await asyncio.gather(*(in_database(together.wait)() for _ in range(2)))

    asyncio.run(both())


def test_under_async_to_sync_a_call_runs_in_the_callers_thread_on_its_connection() -> None:
    assert async_to_sync(in_database(threading.current_thread))() is threading.current_thread()
