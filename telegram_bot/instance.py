"""One bot process at a time for each bot: whoever holds an advisory lock of PostgreSQL works, the others stand by."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from generation.database import listen_parameters

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CHECK_SECONDS = 5.0


@asynccontextmanager
async def only_instance(bot_id: int) -> AsyncIterator[psycopg.AsyncConnection]:
    """Wait to be the only one; yields the connection that holds the lock, which the server frees when it is lost."""
    connection = await _lock(_key(bot_id))
    try:
        yield connection
    finally:
        await connection.close()


async def watch(connection: psycopg.AsyncConnection) -> None:
    """Runs while the lock is held.

    Raises:
        psycopg.OperationalError: the connection is gone, and the lock with it.
    """
    while True:
        # Nobody notifies this connection, but waiting on its socket hears at once when the server closes it.
        async for _ in connection.notifies(timeout=CHECK_SECONDS):
            pass
        await connection.execute("SELECT 1")


async def _lock(key: int) -> psycopg.AsyncConnection:
    waiting = False
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(**listen_parameters(), autocommit=True)
        except psycopg.OperationalError as error:
            logger.warning("PostgreSQL is not there, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        try:
            # Tried again and again rather than waited for in the server, where the statement would hold back vacuum.
            while not await _try(connection, key):
                if not waiting:
                    logger.info("another instance of this bot is at work; standing by")
                    waiting = True
                await asyncio.sleep(RETRY_SECONDS)
            return connection
        except psycopg.OperationalError as error:
            logger.warning("PostgreSQL went away, trying again: %s", error)
            await connection.close()
            await asyncio.sleep(RETRY_SECONDS)
        except BaseException:
            await connection.close()
            raise


async def _try(connection: psycopg.AsyncConnection, key: int) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [key])
    row = await cursor.fetchone()
    return bool(row and row[0])


def _key(bot_id: int) -> int:
    """64 bits for this bot that nobody else is likely to lock."""
    return int.from_bytes(hashlib.sha256(f"telegram_bot:{bot_id}".encode()).digest()[:8], signed=True)
