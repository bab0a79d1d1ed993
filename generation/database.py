"""PostgreSQL from asyncio and from outside Django's connections, and how its absence shows."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, close_old_connections, connection

P = ParamSpec("P")
R = TypeVar("R")

# The database is away or was restarted under us, or all connections of the pool are in use: the same call works later.
DATABASE_AWAY = (OperationalError, InterfaceError)
# What clients are told of when that may be, in seconds.
RETRY_AFTER = {"Retry-After": "5"}


def in_database(function: Callable[P, R]) -> Callable[P, Awaitable[R]]:
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

    return sync_to_async(call, thread_sensitive=True)


def listen_parameters() -> dict[str, Any]:
    """Connection parameters for psycopg itself, for a connection that lives as long as its process."""
    parameters: dict[str, Any] = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(ours, None)
    return parameters | {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
