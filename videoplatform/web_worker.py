"""gunicorn's ASGI worker, which also closes connections that do not say in time what they want.

As it comes, a connection whose request never begins, or stops in the middle of its head, stays open for good; a few
thousand of them use up the file descriptors. (Bodies: `body_limit`.)
"""

import asyncio
from typing import Any

from django.conf import settings
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi


class WebWorker(gasgi.ASGIWorker):
    """`gunicorn --worker-class videoplatform.web_worker.WebWorker`."""

    def init_process(self) -> None:
        # It makes its connections by this name, and has no setting for it.
        gasgi.ASGIProtocol = ImpatientProtocol
        super().init_process()


class ImpatientProtocol(ASGIProtocol):
    """One connection, closed when it stays REQUEST_SECONDS without the whole head of a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._request_seen = self.req_count
        self._look: asyncio.TimerHandle = self.worker.loop.call_later(
            settings.REQUEST_SECONDS, self._look_now
        )

    def _look_now(self) -> None:
        waits: Any = self._awaiting_request
        if waits and self.req_count == self._request_seen:
            self._keepalive_timeout()  # as it ends a connection that is idle between two requests
        else:
            self._look_later()
