"""The ASGI app in front of Django that answers the two streams itself."""

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest

from generation.api.errors import API_PREFIX, Problem, describe
from generation.database import DATABASE_AWAY, in_database
from generation.models import fields
from generation.sse.streams import (
    HEADERS,
    HEARTBEAT,
    RETRY,
    Board,
    BrowserStream,
    Stream,
    VideoStream,
    owner_of_video,
    user_of_session,
)

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

BROWSER_EVENTS = "/events"
VIDEO_EVENTS = re.compile(r"/v1/videos/([^/]+)/events")
# A burst of steps becomes one message: no stream gets more than ten of them a second.
BREATH_SECONDS = 0.1
DATABASE_PAUSE_SECONDS = 2.0
MAX_STREAMS_PER_USER = 50
SIGNED_OUT = Problem(401, "signed_out", "Please sign in.")
TOO_MANY = Problem(429, "too_many_streams", f"You have {MAX_STREAMS_PER_USER} event streams open already.")


class EventStreams:
    """Answers the two streams itself, and the server's lifespan; everything else is for `inner`."""

    def __init__(self, inner: App) -> None:
        self._inner = inner
        self._board = Board()
        self._closing = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and scope["method"] == "GET" and scope["path"].endswith("/events"):
            answer = await self._choose(ASGIRequest(scope, BytesIO()))
            await answer(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _choose(self, request: ASGIRequest) -> App:
        """Who answers: a stream, a refusal, or `inner`, which also tells the API's errors."""
        try:
            request.get_host()
            stream = await self._stream_for(request)
        except DisallowedHost:
            return self._inner
        except DATABASE_AWAY as error:
            logger.error("an event stream could not be opened: %s", str(error).strip())
            return refusal(request.path_info, describe(error))
        if stream is None:
            return refusal(BROWSER_EVENTS, SIGNED_OUT) if request.path_info == BROWSER_EVENTS else self._inner
        if self._board.streams_of(stream.inbox.user) >= MAX_STREAMS_PER_USER:
            return refusal(request.path_info, TOO_MANY)
        return functools.partial(self._serve, stream)

    async def _stream_for(self, request: ASGIRequest) -> Stream | None:
        if request.path_info == BROWSER_EVENTS:
            user = await in_database(user_of_session)(request)
            return BrowserStream(request, user=user) if user is not None else None
        match = VIDEO_EVENTS.fullmatch(request.path_info)
        if match and (job := fields.job_id(match[1])):
            header = request.META.get("HTTP_AUTHORIZATION", "").encode("latin-1")
            owner = await in_database(owner_of_video)(header, job)
            return VideoStream(user=owner, job=job, key=header) if owner is not None else None
        return None

    async def _serve(self, stream: Stream, scope: Message, receive: Receive, send: Send) -> None:
        """Until the reader goes away, may not read any more, or has seen the end."""
        with self._board.opened(stream.inbox):
            tasks = [
                asyncio.create_task(self._write(stream, send)),
                asyncio.create_task(_disconnected(receive)),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: Stream, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await _send_chunk(send, RETRY)
        check_at = time.monotonic() + settings.EVENTS_RECHECK_SECONDS
        while await self._send_news(stream, send):
            await asyncio.sleep(BREATH_SECONDS)
            if not await stream.inbox.wait(settings.EVENTS_HEARTBEAT_SECONDS):
                await _send_chunk(send, HEARTBEAT)
                stream.inbox.look_at_the_line()
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + settings.EVENTS_RECHECK_SECONDS
                stream.ended = not await _allowed(stream)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_news(self, stream: Stream, send: Send) -> bool:
        """Read and send what is new; False when nothing more will come.

        When the database is away, everything is looked at again a little later.
        """
        if self._closing or stream.ended:
            return False
        try:
            frames = await stream.read()
        except DATABASE_AWAY as error:
            logger.warning("an event stream waits for the database: %s", str(error).strip())
            await asyncio.sleep(DATABASE_PAUSE_SECONDS)
            stream.inbox.put(None)
            return True
        if frames:
            await _send_chunk(send, b"".join(frames))
        return not stream.ended

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """End the streams. The server calls it at a signal, before it waits for open responses."""
        self._closing = True
        for inbox in self._board.everybody():
            inbox.wake()


async def _allowed(stream: Stream) -> bool:
    try:
        return await stream.still_allowed()
    except DATABASE_AWAY:
        # Nothing can be read from a database that is away, so nothing leaks until the next look.
        return True


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_chunk(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def refusal(path: str, problem: Problem) -> App:
    """No stream: an app that says so, in the API's words or in plain ones."""
    is_api = path.startswith(API_PREFIX)
    body = (json.dumps(problem.body) if is_api else problem.message).encode()
    headers = {
        "Content-Type": "application/json" if is_api else "text/plain; charset=utf-8",
        "Cache-Control": "no-store",
        "Content-Length": str(len(body)),
        **problem.headers,
    }

    async def refuse(scope: Message, receive: Receive, send: Send) -> None:
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    return refuse
