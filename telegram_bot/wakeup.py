"""Wake-ups of the bot's process by others: one NOTIFY, heard by one LISTEN connection.

A wake-up that is lost costs seconds and nothing else: the tables are looked at from time to time in any case.
"""

import asyncio
import logging

import psycopg
from django.db import connection

from generation.database import listen_parameters

logger = logging.getLogger(__name__)

CHANNEL = "telegram_bot"
INBOX, OUTBOX = "inbox", "outbox"
RECONNECT_SECONDS = 1.0


def call(what: str) -> None:
    """Wake the bot's process for INBOX or OUTBOX when the current transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, what])


async def listen_for_ever(wakeups: dict[str, asyncio.Event]) -> None:
    """Set the event of each wake-up; all of them after the connection was lost, as some may have been missed."""
    while True:
        try:
            connecting = psycopg.AsyncConnection.connect(**listen_parameters(), autocommit=True)
            async with await connecting as listener:
                await listener.execute(f"LISTEN {CHANNEL}")
                for event in wakeups.values():
                    event.set()
                async for notification in listener.notifies():
                    if notification.payload in wakeups:
                        wakeups[notification.payload].set()
        except psycopg.OperationalError as error:
            logger.warning("the listener for wake-ups lost PostgreSQL, trying again: %s", error)
        await asyncio.sleep(RECONNECT_SECONDS)
