"""Writing down what has been done already, however long the database is away: to forget it would be to do it twice."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from generation.database import DATABASE_AWAY
from telegram_bot import backoff

logger = logging.getLogger(__name__)

R = TypeVar("R")


async def written(operation: Callable[[], Awaitable[R]], *, about: str) -> R:
    """The result of `operation`, a database function, as soon as it went through; `about` names the row in the log."""
    for pause in backoff.delays(longest=5.0):
        try:
            return await operation()
        except DATABASE_AWAY as error:
            logger.warning("%s is done but cannot be marked yet: %s", about, error)
            await asyncio.sleep(pause)
    raise AssertionError("delays have no end")
