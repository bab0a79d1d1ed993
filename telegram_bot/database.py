"""The ORM from asyncio."""

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, close_old_connections

P = ParamSpec("P")
T = TypeVar("T")

# The database is away or was restarted under us: the same call works later.
DATABASE_AWAY = (OperationalError, InterfaceError)


def in_database(function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Make ORM code awaitable. Connections that died are dropped around each call.

    Without that, asynchronous code never recovers from a restart of the database: nothing else here would do it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return sync_to_async(call, thread_sensitive=True)
