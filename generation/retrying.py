"""Trying again: the pauses between tries, and writing down what is done however long the database is away."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from generation.database import DATABASE_AWAY

logger = logging.getLogger(__name__)

R = TypeVar("R")


def delay(failures: int, *, longest: float = 60.0) -> float:
    """Seconds after the given number of failures (1 is the first): 1, 2, 4 … `longest`, a fifth of it by chance."""
    return min(longest, 2.0 ** min(failures - 1, 16)) * random.uniform(0.9, 1.1)


def delays(*, longest: float = 60.0) -> Iterator[float]:
    """The delays one after the other, without end."""
    failures = 0
    while True:
        failures += 1
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
