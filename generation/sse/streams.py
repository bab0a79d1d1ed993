"""The two kinds of stream: all jobs of a signed-in person as cards, and one job as the API's video object."""

import asyncio
import contextlib
import functools
import importlib
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.contrib.auth import get_user
from django.core.handlers.asgi import ASGIRequest
from django.db.models import Q
from django.utils import timezone, translation

from accounts.languages import language_for
from accounts.models import User
from generation.api.auth import key_of_header
from generation.api.serializers import video_json, with_what_is_shown
from generation.database import in_database
from generation.jobs.events import JobEvent, event_of, hub
from generation.models import GenerationJob
from generation.web.presenters import render_card

MEDIA_TYPE = "text/event-stream"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# How long a browser waits before it connects again.
RETRY = b"retry: 2000\n\n"
HEARTBEAT = b": still here\n\n"


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


# Who hears what: the hub's events, dealt out to the open streams of the user they are about.


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


# What streams read from the database: in a thread, with no connection kept while they wait.


# How many jobs a stream begins with at most.
SNAPSHOT_JOBS = 24


def user_of_session(request: ASGIRequest) -> User | None:
    """Who is signed in: the same check as AuthenticationMiddleware makes, the session being read afresh."""
    store = importlib.import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    return user if isinstance(user, User) and user.is_active else None


def owner_of_video(header: bytes, job: uuid.UUID) -> int | None:
    """The owner of the key in this Authorization header, when the video is theirs too."""
    key = key_of_header(header)
    if key is None or not GenerationJob.objects.filter(pk=job, user=key.user_id, deleted_at=None).exists():
        return None
    return key.user_id


def recent_events(user: int, since: datetime) -> list[JobEvent]:
    """The state of every live job of the user and of what ended since then, as events."""
    jobs = GenerationJob.objects.filter(user=user, deleted_at=None)
    recent = jobs.filter(Q(finished_at=None) | Q(finished_at__gte=since)).order_by("-created_at")[
        :SNAPSHOT_JOBS
    ]
    return [event_of(job) for job in recent]


def frame_of_video(job: uuid.UUID, user: int) -> tuple[JobEvent, bytes, bool] | None:
    """How it stands, the same as the API's stream says it, and whether that is the last; None when it was deleted."""
    row = with_what_is_shown(GenerationJob.objects.filter(pk=job, user=user, deleted_at=None)).first()
    return None if row is None else (event_of(row), video_frame(row), not row.is_live)


# Server-sent events as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html).


# What ended while nobody listened is sent again after a (re)connect: as far back as this.
SNAPSHOT_WINDOW = timedelta(minutes=10)


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

    def __init__(self, request: ASGIRequest, *, user: User) -> None:
        super().__init__(Inbox(user=user.pk))
        self._request = request
        self._language = language_for(request, user)

    async def still_allowed(self) -> bool:
        user = await in_database(user_of_session)(self._request)
        return user is not None and user.pk == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        since = min(_last_seen(self._request), timezone.now() - SNAPSHOT_WINDOW)
        events = await in_database(recent_events)(self.inbox.user, since)
        for event in events:
            self.inbox.note(event)
        return await self.news(events)

    async def news(self, events: list[JobEvent]) -> list[bytes]:
        frames = []
        for event in events:
            card = await cards.card(event, self._language)
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
        return await in_database(owner_of_video)(self._key, self._job) == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        found = await in_database(frame_of_video)(self._job, self.inbox.user)
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
        self._under_way: dict[tuple[JobEvent, str], asyncio.Task[str]] = {}

    async def card(self, event: JobEvent, language: str) -> str:
        wanted = (event, language)
        task = self._under_way.get(wanted)
        if task is None:
            task = asyncio.create_task(in_database(_render)(uuid.UUID(event.job), language))
            self._under_way[wanted] = task
            task.add_done_callback(functools.partial(self._forget, wanted))
        return await asyncio.shield(task)

    def _forget(self, wanted: tuple[JobEvent, str], task: "asyncio.Task[str]") -> None:
        self._under_way.pop(wanted, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it hears of it; when nobody does any more, it is of no interest


cards = Cards()


def _render(job: uuid.UUID, language: str) -> str:
    with translation.override(language):
        return render_card(job)


def _last_seen(request: ASGIRequest) -> datetime:
    """When a client that comes back saw its last event; now, for one that never was here."""
    said = request.headers.get("Last-Event-ID", "")
    if said.isascii() and said.isdecimal() and len(said) == len(str(int(time.time() * 1000))):
        return datetime.fromtimestamp(int(said) / 1000, tz=UTC)
    return timezone.now()
