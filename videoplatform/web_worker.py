"""gunicorn's ASGI worker, hardened: everything of ours that knows gunicorn from inside is here.

Bodies and cancelled requests are a matter of ASGI: `hardening`.
"""

import asyncio
import re

from django.conf import settings
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi


class WebWorker(gasgi.ASGIWorker):
    """`gunicorn --worker-class videoplatform.web_worker.WebWorker`."""

    def init_process(self) -> None:
        # It makes its connections by this name, and has no setting for it.
        gasgi.ASGIProtocol = ImpatientProtocol
        super().init_process()

    def handle_exit_signal(self) -> None:
        """End the event streams first: gunicorn waits for open responses, and these never end by themselves."""
        self.asgi.close()
        super().handle_exit_signal()


class ImpatientProtocol(ASGIProtocol):
    """One connection, closed when the whole head of its first request is not there within REQUEST_SECONDS.

    As gunicorn comes, such a connection stays open for good; a few thousand of them use up the file descriptors. Later
    requests of the connection have to arrive within gunicorn's own `--keep-alive`.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._unread_head = b""
        self._head_timer = self.worker.loop.call_later(settings.REQUEST_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        if not self._head_timer.cancelled():
            self._unread_head = (self._unread_head + data).lstrip(b"\r\n")
            if re.search(rb"\n\r?\n", self._unread_head):
                self._head_timer.cancel()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)
