"""What no view can read is refused before any view tries."""

import asyncio
import codecs
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse

from generation.api.errors import TOO_LARGE, TOO_SLOW, Problem, answer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

# Bytes a second that a body must come at, once REQUEST_SECONDS have passed: a poor telephone line.
SLOWEST = 1024


class BodyRefused(Exception):
    """More came than any door of ours takes, or it came too slowly."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class BodyLimit:
    """In front of Django: refuse with 413 what is longer than MAX_REQUEST_BYTES, by its header or while it comes, and
    with 408 what stalls. A body that is waited for holds neither a thread nor a database connection.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        watched = _Watched(receive, send)
        try:
            if _announced(scope) > settings.MAX_REQUEST_BYTES:
                raise BodyRefused(TOO_LARGE)
            await self._inner(scope, watched.receive, watched.send)
        except BodyRefused as refused:
            if watched.answered:
                raise
            await _refuse(scope["path"], refused.problem, send)


class _Watched:
    """The two ends of one request, the bytes that came counted and timed."""

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
            raise BodyRefused(TOO_LARGE)
        return message

    async def _next(self) -> Message:
        if self._complete:  # what is waited for now is the end of the connection
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._begun + settings.REQUEST_SECONDS + self._bytes / SLOWEST):
                return await self._receive()
        except TimeoutError:
            raise BodyRefused(TOO_SLOW) from None

    async def send(self, message: Message) -> None:
        self.answered = True
        await self._send(message)


def _announced(scope: Message) -> int:
    """Content-Length. The server has refused one that is no number."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value) if len(value) < 19 else settings.MAX_REQUEST_BYTES + 1
    return 0


async def _refuse(path: str, problem: Problem, send: Send) -> None:
    """The rest is not read, so the connection cannot be used again."""
    response = answer(path, problem)
    headers = [
        (b"content-type", response["Content-Type"].encode()),
        (b"content-length", str(len(response.content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})


# Requests that go on to their end, also when the server has lost patience with them.


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


# The longest request body, and the slowest. Django looks at a body only after it has written all of it to the disk.


READ = {"utf-8", "ascii"}


class RefuseUnreadable:
    """Middleware: answers 400 to a body in another charset than UTF-8, and to a NUL in an address of the admin."""

    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        _refuse_charsets(request)
        _refuse_nul(request)
        return self._get_response(request)


def _refuse_charsets(request: HttpRequest) -> None:
    """Python knows codecs (punycode, idna, zlib) that are no charsets, and Django decodes with whichever is named."""
    # None, too, where Python knows no such charset: then it is read as UTF-8.
    if request.encoding and codecs.lookup(request.encoding).name not in READ:
        request.encoding = "utf-8"  # the page that says so looks at the form, too
        raise BadRequest("a body in a charset other than UTF-8")


def _refuse_nul(request: HttpRequest) -> None:
    """Django's admin filters by whatever an address says, and PostgreSQL takes a NUL for no text."""
    address = request.path_info + request.META.get("QUERY_STRING", "")
    if request.path_info.startswith("/admin/") and ("\0" in address or "%00" in address):
        raise BadRequest("a NUL in the address")
