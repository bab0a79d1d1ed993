"""Wake-ups of the bot's process by others: one NOTIFY, heard by one LISTEN connection.

A wake-up that is lost costs seconds and nothing else: the tables are looked at from time to time in any case.
"""

import asyncio

from generation.database import notifications, notify

CHANNEL = "telegram_bot"
INBOX, OUTBOX = "inbox", "outbox"


def call(what: str) -> None:
    """Wake the bot's process for INBOX or OUTBOX when the current transaction commits."""
    notify(CHANNEL, what)


async def listen_for_ever(wakeups: dict[str, asyncio.Event]) -> None:
    """Set the event of each wake-up; all of them after the connection was lost, as some may have been missed."""
    async for what in notifications(CHANNEL):
        for name, event in wakeups.items():
            if what in (None, name):
                event.set()
