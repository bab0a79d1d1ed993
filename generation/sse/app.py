"""Live updates over HTTP: `GET /events` for the site's own pages, `GET /v1/videos/{id}/events` for the API.

A small ASGI app in front of Django: as an ordinary view, a stream that waits would hold a thread and a database
connection.
"""

import asyncio
import functools
import logging
import re
import time
from io import BytesIO

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse

from generation.api import errors
from generation.api.errors import App, Message, Receive, Send
from generation.database import DATABASE_AWAY, check_hearing, in_database
from generation.errors import AccountInactive
from generation.models import fields
from generation.sse import streams

logger = logging.getLogger(__name__)

BROWSER_EVENTS = "/events"
VIDEO_EVENTS = re.compile(r"/v1/videos/([^/]+)/events")
HEADERS = [
    (b"content-type", f"{streams.MEDIA_TYPE}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
RETRY = b"retry: 2000\n\n"  # milliseconds until a browser connects again
HEARTBEAT = b": still here\n\n"
# A burst of steps becomes one message: no stream gets more than ten of them a second.
PAUSE_SECONDS = 0.1
DATABASE_PAUSE_SECONDS = 2.0
MAX_STREAMS_PER_USER = 50
TOO_MANY = errors.Problem(
    429, "too_many_streams", f"You have {MAX_STREAMS_PER_USER} event streams open already."
)


class EventStreams:
    """Answers the two streams itself, and the server's lifespan; `inner` answers everything else."""

    def __init__(self, inner: App) -> None:
        self._inner = inner
        self._board = streams.Board()
        self._closing = False
        self._hearing: asyncio.Task[None] | None = None  # kept, or it may be collected while it runs

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and scope["method"] == "GET" and scope["path"].endswith("/events"):
            app = await self._choose(ASGIRequest(scope, BytesIO()))
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await errors.refuse(errors.FORBIDDEN, scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _choose(self, request: ASGIRequest) -> App:
        """Choose the app that answers: a stream, a refusal, or `inner`, which also makes the API's errors."""
        try:
            request.get_host()
            stream = await self._stream_for(request)
        except DisallowedHost:
            return self._inner
        except AccountInactive as error:
            return _refusal(request.path_info, errors.describe(error))
        except DATABASE_AWAY as error:
            logger.error("an event stream could not be opened: %s", str(error).strip())
            return _refusal(request.path_info, errors.describe(error))
        if stream is None:
            is_browser = request.path_info == BROWSER_EVENTS
            return _refusal(BROWSER_EVENTS, errors.SIGNED_OUT) if is_browser else self._inner
        if self._board.streams_of(stream.inbox.user) >= MAX_STREAMS_PER_USER:
            return _refusal(request.path_info, TOO_MANY)
        return functools.partial(self._serve, stream)

    async def _stream_for(self, request: ASGIRequest) -> streams.Stream | None:
        if request.path_info == BROWSER_EVENTS:
            user = await in_database(streams.user_of_session)(request)
            return streams.BrowserStream(request, user=user) if user is not None else None
        match = VIDEO_EVENTS.fullmatch(request.path_info)
        if match and (job := fields.job_id(match[1])):
            header = request.META.get("HTTP_AUTHORIZATION", "").encode("latin-1")
            owner = await in_database(streams.owner_of_video)(header, job)
            return streams.VideoStream(user=owner, job=job, key=header) if owner is not None else None
        return None

    async def _serve(self, stream: streams.Stream, scope: Message, receive: Receive, send: Send) -> None:
        """Send until the reader goes away, may not read any more, or has seen the end."""
        scope["user"] = stream.inbox.user  # for the access log

        async def disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        with self._board.opened(stream.inbox):
            tasks = [asyncio.create_task(self._write(stream, send)), asyncio.create_task(disconnected())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: streams.Stream, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await _send_chunk(send, RETRY)
        check_at = time.monotonic() + settings.EVENTS_RECHECK_SECONDS
        while await self._send_news(stream, send):
            await asyncio.sleep(PAUSE_SECONDS)
            if not await stream.inbox.wait(settings.EVENTS_HEARTBEAT_SECONDS):
                await _send_chunk(send, HEARTBEAT)
                stream.inbox.resend_queued()
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + settings.EVENTS_RECHECK_SECONDS
                try:
                    stream.ended = not await stream.still_allowed()
                except DATABASE_AWAY:
                    # Nothing can be read from a database that is away, so nothing leaks until the next check.
                    stream.ended = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_news(self, stream: streams.Stream, send: Send) -> bool:
        """Read and send what is new; False when nothing more will come.

        While the database is away, everything is read again a little later.
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
                self._hearing = asyncio.create_task(asyncio.to_thread(check_hearing))
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        """End the streams. The server calls it at a signal, before it waits for open responses."""
        self._closing = True
        for inbox in self._board.inboxes():
            inbox.wake()


async def _send_chunk(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _refusal(path: str, problem: errors.Problem) -> App:
    """Make an app that refuses: in JSON for the API, in plain text for the site's scripts."""
    response = errors.answer(errors.API_PREFIX, problem)
    if not path.startswith(errors.API_PREFIX):
        response = HttpResponse(problem.message, "text/plain; charset=utf-8", headers=problem.headers)
    response.status_code, response["Cache-Control"] = problem.status, "no-store"

    async def refuse(scope: Message, receive: Receive, send: Send) -> None:
        await errors.send_response(response, send)

    return refuse
