"""Layers in front of the views: limits for bodies, requests that are finished, refusal of what is unreadable."""

import asyncio
import codecs
import os
from collections.abc import Callable
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import BadRequest
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.http import HttpRequest, HttpResponse

from generation.api import errors
from generation.api.errors import App, Message, Receive, Send

# Bytes a second that a body must come at, once REQUEST_SECONDS have passed: a poor telephone line.
SLOWEST = 1024


class BodyRefused(Exception):
    """The body is longer than any view takes, or it came too slowly."""

    def __init__(self, problem: errors.Problem) -> None:
        self.problem = problem


class BodyLimit:
    """ASGI layer: answers 413 to a body longer than MAX_REQUEST_BYTES, by its header or while it comes, and 408 to one
    that stalls. Django looks at a body only after it has written all of it to the disk; a body that is waited for here
    holds neither a thread nor a database connection.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        watched = _Watched(receive, send)
        try:
            if _announced(scope) > settings.MAX_REQUEST_BYTES:
                raise BodyRefused(errors.TOO_LARGE)
            await self._inner(scope, watched.receive, watched.send)
        except BodyRefused as refused:
            if watched.answered:
                raise
            response = errors.answer(scope["path"], refused.problem)
            response["Connection"] = "close"  # the rest of the body is not read
            await errors.send_response(response, send)


class _Watched:
    """Receive and send of one request; counts and times the bytes of the body."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._bytes = 0
        self._begun = asyncio.get_running_loop().time()
        self._complete = False
        self.answered = False

    async def receive(self) -> Message:
        message = await self._next()
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > settings.MAX_REQUEST_BYTES:
            raise BodyRefused(errors.TOO_LARGE)
        return message

    async def _next(self) -> Message:
        if self._complete:  # only the end of the connection is still to come
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._begun + settings.REQUEST_SECONDS + self._bytes / SLOWEST):
                return await self._receive()
        except TimeoutError:
            raise BodyRefused(errors.TOO_SLOW) from None

    async def send(self, message: Message) -> None:
        self.answered = True
        await self._send(message)


def _announced(scope: Message) -> int:
    """Return Content-Length. The server has refused one that is no number."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value) if len(value) < 19 else settings.MAX_REQUEST_BYTES + 1
    return 0


class FinishCancelled:
    """ASGI layer: Django finishes a request although the server has cancelled it.

    The last thing that Django does for a request is to give its database connection back to the pool. Three seconds
    after a client has left, the server cancels what still runs; behind a slow query that would cancel the giving back
    as well, and the pool would be short of a connection for good.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = asyncio.ensure_future(self._inner(scope, receive, send))
        self._running.add(request)  # the event loop itself keeps no reference to a task
        request.add_done_callback(self._running.discard)
        await asyncio.shield(request)


class MeasuredRequest(ASGIRequest):
    """A request whose Content-Length is the size of its body.

    A body sent in chunks (RFC 9112, 7.1), as by clients that stream it, comes without that header, and Django's readers
    of forms as well as REST framework's take a request without it for one without a body.
    """

    def __init__(self, scope: Message, body_file: IO[bytes]) -> None:
        super().__init__(scope, body_file)
        if size := body_file.seek(0, os.SEEK_END):
            self.META["CONTENT_LENGTH"] = str(size)
        body_file.seek(0)


class MeasuringHandler(ASGIHandler):
    """Django's own handler, with requests that know the size of their body."""

    request_class = MeasuredRequest


READABLE_CHARSETS = {"utf-8", "ascii"}


class RefuseUnreadable:
    """Middleware: answers 400 to a body in another charset than UTF-8, and to a NUL in an address of the admin."""

    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        # Python knows codecs (punycode, idna, zlib) that are no charsets, and Django decodes with any that is named.
        # request.encoding is None where Python knows no such charset: then the body is read as UTF-8.
        if request.encoding and codecs.lookup(request.encoding).name not in READABLE_CHARSETS:
            request.encoding = "utf-8"  # the error page reads the form, too
            raise BadRequest("a body in a charset other than UTF-8")
        # Django's admin filters by any parameter of an address, and PostgreSQL refuses a NUL in a text.
        address = request.path_info + request.META.get("QUERY_STRING", "")
        if request.path_info.startswith("/admin/") and ("\0" in address or "%00" in address):
            raise BadRequest("a NUL in the address")
        return self._get_response(request)
