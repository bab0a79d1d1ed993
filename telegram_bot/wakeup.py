"""How other processes call the bot: one NOTIFY, heard by one LISTEN connection.

A call that is lost costs seconds and nothing else: whoever is called looks at the table in any case from time to time.
"""

import asyncio

from generation.database import notifications, notify

CHANNEL = "telegram_bot"
INBOX, NOTICES, REFUNDS = "inbox", "notices", "refunds"


def ring(whom: str) -> None:
    """Heard when the current transaction commits."""
    notify(CHANNEL, whom)


async def listen_for_ever(called: dict[str, asyncio.Event]) -> None:
    """Set the event that a call names; all of them after the connection was lost, for calls may have been missed."""
    async for name in notifications(CHANNEL):
        for event in called.values() if name is None else filter(None, [called.get(name)]):
            event.set()


async def called_or_later(event: asyncio.Event, *, seconds: float) -> None:
    """Return when somebody calls, at once if they did since the last time, and after so many seconds anyway."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
    finally:
        event.clear()
