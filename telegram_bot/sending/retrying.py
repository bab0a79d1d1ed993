"""Writing down what has been done already, however long the database is away: to forget it would be to do it twice."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from generation.database import DATABASE_AWAY


def delay(failures: int, *, longest: float = 60.0) -> float:
    """Seconds after the given number of failures (1 is the first): 1, 2, 4 … `longest`, a fifth of it by chance."""
    return min(longest, 2.0 ** min(failures - 1, 16)) * random.uniform(0.9, 1.1)


def delays(*, longest: float = 60.0) -> Iterator[float]:
    """The delays one after the other, without end."""
    failures = 0
    while True:
        failures += 1
        yield delay(failures, longest=longest)


# How long to wait before something is tried again.


logger = logging.getLogger(__name__)

R = TypeVar("R")


async def written(operation: Callable[[], Awaitable[R]], *, about: str) -> R:
    """The result of `operation`, a database function, as soon as it went through; `about` names the row in the log."""
    for pause in delays(longest=5.0):
        try:
            return await operation()
        except DATABASE_AWAY as error:
            logger.warning("%s is done but cannot be marked yet: %s", about, error)
            await asyncio.sleep(pause)
    raise AssertionError("delays have no end")
