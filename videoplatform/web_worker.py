"""gunicorn's ASGI worker, hardened: everything of ours that knows gunicorn from inside is here.

Bodies and cancelled requests are a matter of ASGI: `hardening`.
"""

import asyncio
import re
from collections import Counter
from functools import partial
from typing import ClassVar

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
        from videoplatform.asgi import streams  # loaded after the fork: the module names its process

        streams.close()
        super().handle_exit_signal()


class ImpatientProtocol(ASGIProtocol):
    """One connection, closed when the whole head of its first request is not there within REQUEST_SECONDS, or when its
    reader takes longer than three times that for what the server holds of an answer, about 64 KB.

    As gunicorn comes, such a connection stays open for good; a few thousand of them use up the file descriptors. Later
    requests of the connection have to arrive within gunicorn's own `--keep-alive`.
    """

    # Connections of this process that are served, by source.
    _served: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._unread_head = b""
        self._source = str((transport.get_extra_info("peername") or ["a socket"])[0])
        seconds = settings.REQUEST_SECONDS
        if self._refused():
            self._source, seconds = "", min(seconds, 2.0)
        else:
            self._served[self._source] += 1
        self._head_timer = self.worker.loop.call_later(seconds, transport.close)
        self._read_timer = self._head_timer

    def _refused(self) -> bool:
        """Check the bounds; one more connection gets one small page from the event loop, and is closed."""
        from accounts.limits import network_of  # Django is set up in the workers only
        from generation.api import errors
        from videoplatform.asgi import logged

        self._source = network_of(self._source)
        if self._served.total() >= settings.MAX_CONNECTIONS:
            problem = errors.UNAVAILABLE
        elif self._served[self._source] >= settings.CONNECTIONS_PER_SOURCE:
            problem = errors.TOO_MANY_CONNECTIONS
        else:
            return False
        self.app, self._keepalive = logged(partial(errors.refuse, problem)), 0
        return True

    def data_received(self, data: bytes) -> None:
        if not self._head_timer.cancelled():
            self._unread_head = (self._unread_head + data).lstrip(b"\r\n")
            if re.search(rb"\n\r?\n", self._unread_head):
                self._head_timer.cancel()
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        self._read_timer.cancel()
        super().resume_writing()

    def _close_transport(self) -> None:
        super()._close_transport()
        self._expect_reader()  # the transport closes when all is read

    def _expect_reader(self) -> None:
        self._read_timer.cancel()
        self._read_timer = self.worker.loop.call_later(3 * settings.REQUEST_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        self._read_timer.cancel()
        if self._source:
            self._served[self._source] -= 1
            if not self._served[self._source]:
                del self._served[self._source]
        super().connection_lost(exc)
