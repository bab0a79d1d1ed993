"""Requests that go on to their end, also when the server has lost patience with them."""

import asyncio
from typing import Any

from videoplatform.body_limit import App, Message, Receive, Send


class Unhurried:
    """In front of Django: whoever cancels a request stops waiting for it, and Django finishes it all the same.

    The last thing that Django does for a request is to give its database connection back to the pool. When a client has
    left, gunicorn cancels what is still going on three seconds later; that used to cancel the giving back as well where
    it stood in line behind a slow query, and the pool was short of a connection for good.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = asyncio.ensure_future(self._inner(scope, receive, send))
        self._running.add(request)  # the event loop itself holds on to no task
        request.add_done_callback(self._running.discard)
        await asyncio.shield(request)
