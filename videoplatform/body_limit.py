"""The longest request body. Django looks at its size only after it has written all of it to the disk."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpResponse, JsonResponse
from django.template.loader import render_to_string

from generation.api_errors import API_PREFIX, describe

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]


class BodyTooLong(Exception):
    """More came than any door of ours takes."""


class BodyLimit:
    """In front of Django: refuse with 413 what is longer than MAX_REQUEST_BYTES, by its header or while it comes."""

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        counted = _Counted(receive, send)
        try:
            if _announced(scope) > settings.MAX_REQUEST_BYTES:
                raise BodyTooLong
            await self._inner(scope, counted.receive, counted.send)
        except BodyTooLong:
            if counted.answered:
                raise
            await _refuse(scope["path"], send)


class _Counted:
    """The two ends of one request, the bytes that came counted."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._bytes = 0
        self.answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > settings.MAX_REQUEST_BYTES:
            raise BodyTooLong
        return message

    async def send(self, message: Message) -> None:
        self.answered = True
        await self._send(message)


def _announced(scope: Message) -> int:
    """Content-Length. The server has refused one that is no number."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value) if len(value) < 19 else settings.MAX_REQUEST_BYTES + 1
    return 0


async def _refuse(path: str, send: Send) -> None:
    """The rest is not read, so the connection cannot be used again."""
    problem = describe(RequestDataTooBig())
    response = (
        JsonResponse(problem.body)
        if path.startswith(API_PREFIX)
        else HttpResponse(render_to_string("413.html"))
    )
    headers = [
        (b"content-type", response["Content-Type"].encode()),
        (b"content-length", str(len(response.content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})
