"""PostgreSQL from asyncio and from outside Django's connections, and waiting for it while it is away."""

import asyncio
import functools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, ParamSpec, TypeVar

import psycopg
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

# The database is away or was restarted under us, or all connections of the pool are in use: the same call works later.
DATABASE_AWAY = (OperationalError, InterfaceError)
# The header that tells clients when that may be, in seconds.
RETRY_AFTER = {"Retry-After": "5"}
RECONNECT_SECONDS = 1.0
# Where the process has a pool of connections, its requests keep at least half of them.
THREADS = max(1, min(8, settings.DATABASE_POOL_SIZE // 2)) if settings.DATABASE_POOL_SIZE else 8


class _InThreads(SyncToAsync[P, R]):
    """asgiref's bridge with several threads where it has one, so that a slow query delays nothing else.

    Under `async_to_sync` the call still runs in the caller's own thread, on its connection.
    """

    single_thread_executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="database")


def in_database(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make ORM code awaitable. Connections that died are dropped around each call.

    Without that, asynchronous code never recovers from a restart of the database: nothing else here would do it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return _InThreads(call)


def listen_parameters() -> dict[str, Any]:
    """Connection parameters for psycopg itself, for a connection that lives as long as its process."""
    parameters: dict[str, Any] = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(ours, None)
    return parameters | {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


def notify(channel: str, *payloads: str) -> None:
    """Call every listener of the channel, once for each payload, when the current transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) payload", [channel, list(payloads)]
        )


async def notifications(channel: str) -> AsyncIterator[str | None]:
    """Payloads of the channel, for ever, on one LISTEN connection that is made anew when it is lost.

    A None comes first and after each loss: what was sent meanwhile was not heard, so the reader looks for itself.
    """
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                **listen_parameters(), autocommit=True
            ) as listener:
                await listener.execute(f"LISTEN {channel}")
                yield None
                async for notification in listener.notifies():
                    yield notification.payload
        except psycopg.OperationalError as error:
            logger.warning("the listener on %s lost PostgreSQL, trying again: %s", channel, error)
        await asyncio.sleep(RECONNECT_SECONDS)


# --- Trying again -----------------------------------------------------------------------------------------------------


def delay(failures: int, *, longest: float = 60.0) -> float:
    """Return the seconds to wait after so many failures: 1, 2, 4 … `longest`, a fifth of it by chance."""
    return min(longest, 2.0 ** min(failures - 1, 16)) * random.uniform(0.9, 1.1)


def delays(*, longest: float = 60.0) -> Iterator[float]:
    """Yield the delays one after the other, without end."""
    for failures in count(1):
        yield delay(failures, longest=longest)


async def written(operation: Callable[[], Awaitable[R]], *, about: str) -> R:
    """Repeat `operation` until the database takes it: what is done and not written down would be done twice.

    `about` names the row in the log.
    """
    for pause in delays(longest=5.0):
        try:
            return await operation()
        except DATABASE_AWAY as error:
            logger.warning("%s is done but cannot be marked yet: %s", about, error)
            await asyncio.sleep(pause)
    raise AssertionError("delays have no end")
