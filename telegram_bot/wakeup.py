"""How other processes call the bot: one NOTIFY, heard by one LISTEN connection.

A call that is lost costs seconds and nothing else: whoever is called looks at the table in any case from time to time.
"""

import asyncio
import logging

import psycopg
from django.db import connection

from generation.database import listen_parameters

logger = logging.getLogger(__name__)

CHANNEL = "telegram_bot"
INBOX, NOTICES, REFUNDS = "inbox", "notices", "refunds"
RECONNECT_SECONDS = 1.0


def ring(whom: str) -> None:
    """Heard when the current transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, whom])


async def listen_for_ever(called: dict[str, asyncio.Event]) -> None:
    """Set the event of whoever is called; of all of them after the connection was lost, for they may have missed it."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                **listen_parameters(), autocommit=True
            ) as listener:
                await listener.execute(f"LISTEN {CHANNEL}")
                for event in called.values():
                    event.set()
                async for notification in listener.notifies():
                    if notification.payload in called:
                        called[notification.payload].set()
        except psycopg.OperationalError as error:
            logger.warning("the bell lost PostgreSQL, trying again: %s", error)
        await asyncio.sleep(RECONNECT_SECONDS)


async def called_or_later(event: asyncio.Event, *, seconds: float) -> None:
    """Return when somebody calls, at once if they did since the last time, and after so many seconds anyway."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
    finally:
        event.clear()
