"""Live updates over HTTP: `GET /events` for the site's own pages, `GET /v1/videos/{id}/events` for the API.

A small ASGI app in front of Django. A stream that waits holds neither a thread nor a database connection; as an
ordinary view it would hold both. One subscription to the hub a process is dealt out by user, so that a slow client
delays nobody and misses nothing but states that were overtaken.
"""

import asyncio
import contextlib
import functools
import importlib
import json
import logging
import re
import signal
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import BytesIO
from types import FrameType
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth import get_user
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.db.models import Q
from django.utils import timezone

from generation import public_ids
from generation.api_auth import key_of_header
from generation.api_serializers import video_json, with_what_is_shown
from generation.cards import render_card
from generation.database import DATABASE_AWAY
from generation.events import JobEvent, hub
from generation.models import GenerationJob

logger = logging.getLogger(__name__)

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

MEDIA_TYPE = "text/event-stream"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
VIDEO_EVENTS = re.compile(r"/v1/videos/([^/]+)/events")
RETRY_MS = 2000
# A burst of steps becomes one message: no stream gets more than ten of them a second.
BREATH_SECONDS = 0.1
DATABASE_PAUSE_SECONDS = 2.0
MAX_STREAMS_PER_USER = 50
# What ended while nobody listened is sent again after a (re)connect: as far back as this, and never more than so many.
SNAPSHOT_WINDOW = timedelta(minutes=10)
SNAPSHOT_JOBS = 24

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sse")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a function that uses the ORM; its connection is given back before this returns."""

    def run() -> T:
        try:
            return function(*args)
        finally:
            connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(_threads, run)


# --- The wire format --------------------------------------------------------------------------------------------------


def frame(event: str, data: str, *, at: datetime | None = None) -> bytes:
    """One server-sent event. `at` becomes its id, so that a client that comes back says how much it saw."""
    lines = [f"event: {event}"]
    if at is not None:
        lines.append(f"id: {int(at.timestamp() * 1000)}")
    lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", data)]
    return ("\n".join(lines) + "\n\n").encode()


def video_frame(job: GenerationJob) -> bytes:
    """How a video stands, as the API's stream says it."""
    body = video_json(job)
    event = f"video.{body['status']}" if not job.is_live else "video.updated"
    return frame(event, json.dumps(body, ensure_ascii=False))


# --- Who hears what ---------------------------------------------------------------------------------------------------


class Inbox:
    """What one stream has yet to send: for each job the latest event only.

    job: hex id of the one job that matters, or None for all of the user's.
    """

    def __init__(self, *, user: int, job: str | None = None) -> None:
        self.user = user
        self.job = job
        self._events: dict[str, JobEvent] = {}
        self._everything = True
        self._waiting: dict[str, JobEvent] = {}
        self._line_moved = False
        self._wake = asyncio.Event()

    def put(self, event: JobEvent | None) -> None:
        """Something happened; None: something may have been missed, look at everything again."""
        if event is None:
            self._everything = True
        elif self.job in (None, event.job):
            self._events[event.job] = event
            self.note(event)
        else:
            return
        self._wake.set()

    def note(self, event: JobEvent) -> None:
        """Remember which jobs wait in the queue."""
        if event.state == GenerationJob.State.QUEUED:
            self._waiting[event.job] = event
        else:
            self._waiting.pop(event.job, None)

    def take(self) -> tuple[list[JobEvent], bool]:
        """The events since the last time, and whether everything is to be looked at instead."""
        taken = list(self._events.values()), self._everything
        self._events, self._everything = {}, False
        self._wake.clear()
        return taken

    def the_line_moved(self) -> None:
        """Others left the queue. Not worth a message of its own: it is told with the next heartbeat."""
        self._line_moved = True

    def look_at_the_line(self) -> None:
        if self._line_moved:
            self._line_moved = False
            for event in list(self._waiting.values()):
                self.put(event)

    def wake(self) -> None:
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Until there is something to do; False when there was nothing for so many seconds."""
        try:
            await asyncio.wait_for(self._wake.wait(), timeout=seconds)
        except TimeoutError:
            return False
        return True


class Board:
    """Deals the hub's events out to the inboxes of the user they are about."""

    def __init__(self) -> None:
        self._inboxes: defaultdict[int, set[Inbox]] = defaultdict(set)
        self._pump: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def opened(self, inbox: Inbox) -> Iterator[None]:
        self._inboxes[inbox.user].add(inbox)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._deal_out())
        try:
            yield
        finally:
            self._inboxes[inbox.user].discard(inbox)
            if not self._inboxes[inbox.user]:
                del self._inboxes[inbox.user]

    def streams_of(self, user: int) -> int:
        return len(self._inboxes.get(user, ()))

    def everybody(self) -> Iterator[Inbox]:
        for inboxes in self._inboxes.values():
            yield from inboxes

    async def _deal_out(self) -> None:
        with hub.subscribe() as queue:
            while True:
                event = await queue.get()
                to = self.everybody() if event is None else iter(self._inboxes.get(event.user, ()))
                for inbox in to:
                    inbox.put(event)
                if event is not None and _shortens_the_line(event):
                    for inbox in self.everybody():
                        inbox.the_line_moved()


def _shortens_the_line(event: JobEvent) -> bool:
    """Somebody's job was taken up or withdrawn: others may have moved up."""
    just_started = event.state == GenerationJob.State.RUNNING and event.step == 0
    return just_started or event.state == GenerationJob.State.CANCELED


# --- The two kinds of stream ------------------------------------------------------------------------------------------


class Stream(ABC):
    """One open response: what to send, and whether its reader may still read it."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.ended = False

    async def read(self) -> list[bytes]:
        """What is to be sent now."""
        events, everything = self.inbox.take()
        return await self.snapshot() if everything else await self.news(events)

    @abstractmethod
    async def still_allowed(self) -> bool:
        """Ask the database again who this is."""

    @abstractmethod
    async def snapshot(self) -> list[bytes]:
        """How everything stands, whatever was sent before."""

    @abstractmethod
    async def news(self, events: list[JobEvent]) -> list[bytes]:
        """What these events changed."""


class BrowserStream(Stream):
    """All jobs of the signed-in person: `job` with JSON, and `card-<hex>` with the card's HTML."""

    def __init__(self, request: ASGIRequest, *, user: int) -> None:
        super().__init__(Inbox(user=user))
        self._request = request

    async def still_allowed(self) -> bool:
        return await in_thread(user_of_session, self._request) == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        since = min(_last_seen(self._request), timezone.now() - SNAPSHOT_WINDOW)
        events = await in_thread(_recent_events, self.inbox.user, since)
        for event in events:
            self.inbox.note(event)
        return await self.news(events)

    async def news(self, events: list[JobEvent]) -> list[bytes]:
        frames = []
        for event in events:
            card = await cards.card(event)
            now = timezone.now()
            facts = {"id": event.job, "state": event.state, "step": event.step, "steps": event.steps}
            frames.append(frame("job", json.dumps(facts), at=now))
            if card:
                frames.append(frame(f"card-{event.job}", card, at=now))
        return frames


class VideoStream(Stream):
    """One job of the key's owner as the API's video object; over when the job is."""

    def __init__(self, *, user: int, job: uuid.UUID, key: bytes) -> None:
        super().__init__(Inbox(user=user, job=job.hex))
        self._job = job
        self._key = key
        self._sent = b""

    async def still_allowed(self) -> bool:
        return await in_thread(owner_of_video, self._key, self._job) == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        found = await in_thread(_frame_of_video, self._job, self.inbox.user)
        if found is None:
            self.ended = True
            return []
        event, update, self.ended = found
        self.inbox.note(event)
        if update == self._sent:
            return []
        self._sent = update
        return [update]

    async def news(self, events: list[JobEvent]) -> list[bytes]:
        return await self.snapshot() if events else []


class Cards:
    """Cards as HTML: several pages of one person that want the same card at the same time share one rendering."""

    def __init__(self) -> None:
        self._under_way: dict[JobEvent, asyncio.Task[str]] = {}

    async def card(self, event: JobEvent) -> str:
        task = self._under_way.get(event)
        if task is None:
            task = asyncio.create_task(in_thread(render_card, uuid.UUID(event.job)))
            self._under_way[event] = task
            task.add_done_callback(functools.partial(self._forget, event))
        return await asyncio.shield(task)

    def _forget(self, event: JobEvent, task: "asyncio.Task[str]") -> None:
        self._under_way.pop(event, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it; when nobody does any more, it is of no interest


cards = Cards()


# --- The ASGI app -----------------------------------------------------------------------------------------------------


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
            return refusal(503)
        if stream is None:
            return refusal(401) if request.path_info == "/events" else self._inner
        if self._board.streams_of(stream.inbox.user) >= MAX_STREAMS_PER_USER:
            return refusal(429)
        return functools.partial(self._serve, stream)

    async def _stream_for(self, request: ASGIRequest) -> Stream | None:
        if request.path_info == "/events":
            user = await in_thread(user_of_session, request)
            return BrowserStream(request, user=user) if user is not None else None
        match = VIDEO_EVENTS.fullmatch(request.path_info)
        if match and (job := public_ids.parse(match[1])):
            header = request.META.get("HTTP_AUTHORIZATION", "").encode("latin-1")
            user = await in_thread(owner_of_video, header, job)
            return VideoStream(user=user, job=job, key=header) if user is not None else None
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
        await _send_chunk(send, f"retry: {RETRY_MS}\n\n".encode())
        check_at = time.monotonic() + settings.EVENTS_RECHECK_SECONDS
        while await self._send_news(stream, send):
            await asyncio.sleep(BREATH_SECONDS)
            if not await stream.inbox.wait(settings.EVENTS_HEARTBEAT_SECONDS):
                await _send_chunk(send, b": still here\n\n")
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
                self._end_streams_on_signal()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _end_streams_on_signal(self) -> None:
        """Servers wait for open responses before they say "shutdown", and these responses never end by themselves."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # asyncio hears of signals by its wake-up descriptor, so a handler in front takes nothing from the server.
            signal.signal(
                number, _before(signal.getsignal(number), lambda: loop.call_soon_threadsafe(self._close))
            )

    def _close(self) -> None:
        self._closing = True
        for inbox in self._board.everybody():
            inbox.wake()


def _before(server_handler: Any, action: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, stack: FrameType | None) -> None:
        action()
        if callable(server_handler):
            server_handler(number, stack)

    return handle


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


def refusal(status: int) -> App:
    """No stream: an app that says so. A browser's EventSource does not ask again after this."""

    async def refuse(scope: Message, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/plain"),
            (b"cache-control", b"no-store"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return refuse


# --- What is read from the database, in a thread ----------------------------------------------------------------------


def user_of_session(request: ASGIRequest) -> int | None:
    """Who is signed in: the same check as AuthenticationMiddleware makes, the session being read afresh."""
    store = importlib.import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    return user.pk if user.is_authenticated and user.is_active else None


def owner_of_video(header: bytes, job: uuid.UUID) -> int | None:
    """The owner of the key in this Authorization header, when the video is theirs too."""
    key = key_of_header(header)
    if key is None or not GenerationJob.objects.filter(pk=job, user=key.user_id, deleted_at=None).exists():
        return None
    return key.user_id


def _recent_events(user: int, since: datetime) -> list[JobEvent]:
    """The state of every live job of the user and of what ended since then, as events."""
    jobs = GenerationJob.objects.filter(user=user, deleted_at=None)
    recent = jobs.filter(Q(finished_at=None) | Q(finished_at__gte=since)).order_by("-created_at")[
        :SNAPSHOT_JOBS
    ]
    return [_as_event(job) for job in recent]


def _frame_of_video(job: uuid.UUID, user: int) -> tuple[JobEvent, bytes, bool] | None:
    """How it stands, the same as the API's stream says it, and whether that is the last; None when it was deleted."""
    row = with_what_is_shown(GenerationJob.objects.filter(pk=job, user=user, deleted_at=None)).first()
    return None if row is None else (_as_event(row), video_frame(row), not row.is_live)


def _as_event(job: GenerationJob) -> JobEvent:
    return JobEvent(
        job=job.id.hex, user=job.user_id, state=job.state, step=job.step, steps=job.num_inference_steps
    )


def _last_seen(request: ASGIRequest) -> datetime:
    """When a client that comes back saw its last event; now, for one that never was here."""
    said = request.headers.get("Last-Event-ID", "")
    if said.isascii() and said.isdecimal() and len(said) == len(str(int(time.time() * 1000))):
        return datetime.fromtimestamp(int(said) / 1000, tz=UTC)
    return timezone.now()
