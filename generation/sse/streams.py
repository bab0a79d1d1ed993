"""The two kinds of stream: a user's jobs as cards for the browser, and one job as the API's video object.

One subscription to the hub a process is dealt out by user, so that a slow client delays no other and misses nothing but
states that were overtaken. A stream that waits holds neither a thread nor a database connection.
"""

import asyncio
import contextlib
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
from django.utils import timezone

from accounts.languages import language_for
from accounts.models import User
from generation.api.auth import key_of_header
from generation.api.serializers import video_json
from generation.database import in_database
from generation.errors import AccountInactive
from generation.jobs.events import JobEvent, event_of, hub
from generation.models import GenerationJob
from generation.web.presenters import kept_jobs, render_card

State = GenerationJob.State

MEDIA_TYPE = "text/event-stream"
# A stream begins with the latest jobs that are live or ended so lately: what ended during a reconnect is sent again.
SNAPSHOT_JOBS = 24
SNAPSHOT_WINDOW = timedelta(minutes=10)


def frame(event: str, data: str, *, at: datetime | None = None) -> bytes:
    """Write one server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    at: becomes its id, so that a client that comes back says how much it saw.
    """
    lines = [f"event: {event}"]
    if at is not None:
        lines.append(f"id: {int(at.timestamp() * 1000)}")
    lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", data)]
    return ("\n".join(lines) + "\n\n").encode()


def video_frame(job: GenerationJob) -> bytes:
    body = video_json(job)
    event = "video.updated" if job.is_live else f"video.{body['status']}"
    return frame(event, json.dumps(body, ensure_ascii=False))


class Inbox:
    """The events that one stream has yet to send: the latest of each job.

    job: hex id of the one job that matters, or None for all of the user's.
    """

    def __init__(self, *, user: int, job: str | None = None) -> None:
        self.user = user
        self.job = job
        self._events: dict[str, JobEvent] = {}
        self._everything = True
        self._queued: dict[str, JobEvent] = {}
        self._queue_moved = False
        self._wake = asyncio.Event()

    def put(self, event: JobEvent | None) -> None:
        """Add an event; None: something may have been missed, so everything is to be read again."""
        if event is None:
            self._everything = True
        elif self.job in (None, event.job):
            self._events[event.job] = event
            self.note(event)
        else:
            return
        self.wake()

    def note(self, event: JobEvent) -> None:
        if event.state == State.QUEUED:
            self._queued[event.job] = event
        else:
            self._queued.pop(event.job, None)

    def take(self) -> tuple[list[JobEvent], bool]:
        """Return the events since the last time, and whether everything is to be read instead."""
        taken = list(self._events.values()), self._everything
        self._events, self._everything = {}, False
        self._wake.clear()
        return taken

    def note_queue_moved(self) -> None:
        """Remember that other jobs left the queue. Not worth a message of its own: the next heartbeat brings it."""
        self._queue_moved = True

    def resend_queued(self) -> None:
        """Have the queued jobs sent again if they moved up."""
        if self._queue_moved:
            self._queue_moved = False
            for event in list(self._queued.values()):
                self.put(event)

    def wake(self) -> None:
        self._wake.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for something to do; False when there was nothing for so many seconds."""
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

    def inboxes(self) -> list[Inbox]:
        return [inbox for inboxes in self._inboxes.values() for inbox in inboxes]

    async def _deal_out(self) -> None:
        with hub.subscribe() as queue:
            while True:
                event = await queue.get()
                for inbox in self.inboxes() if event is None else self._inboxes.get(event.user, ()):
                    inbox.put(event)
                if event is not None and (
                    event.state == State.CANCELED or (event.state == State.RUNNING and event.step == 0)
                ):
                    for inbox in self.inboxes():
                        inbox.note_queue_moved()


class Stream(ABC):
    """One open response: what to send, and whether its reader may still read it."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.ended = False

    @abstractmethod
    async def still_allowed(self) -> bool:
        """Check the reader's session or key again."""

    @abstractmethod
    async def read(self) -> list[bytes]:
        """Read the frames to send now: what the events of the inbox changed, or everything."""


class BrowserStream(Stream):
    """All jobs of the signed-in user, each change as an event `card` with the card's HTML."""

    def __init__(self, request: ASGIRequest, *, user: User) -> None:
        super().__init__(Inbox(user=user.pk))
        self._request = request
        self._language = language_for(request, user)

    async def still_allowed(self) -> bool:
        user = await in_database(user_of_session)(self._request)
        return user is not None and user.pk == self.inbox.user

    async def read(self) -> list[bytes]:
        events, everything = self.inbox.take()
        if everything:
            since = min(_last_seen(self._request), timezone.now() - SNAPSHOT_WINDOW)
            events = await in_database(_recent_events)(self.inbox.user, since)
            for event in events:
                self.inbox.note(event)
        frames = []
        for event in events:
            if card := await _card(event, self._language):
                frames.append(frame("card", card, at=timezone.now()))
        return frames


class VideoStream(Stream):
    """One job of the key's owner as the API's video object; ends with the job."""

    def __init__(self, *, user: int, job: uuid.UUID, key: bytes) -> None:
        super().__init__(Inbox(user=user, job=job.hex))
        self._job = job
        self._key = key
        self._sent = b""

    async def still_allowed(self) -> bool:
        try:
            return await in_database(owner_of_video)(self._key, self._job) == self.inbox.user
        except AccountInactive:
            return False

    async def read(self) -> list[bytes]:
        if not any(self.inbox.take()):
            return []
        found = await in_database(_kept_video)(self._job, self.inbox.user)
        if found is None:
            self.ended = True
            return []
        row, update = found
        self.ended = not row.is_live
        self.inbox.note(event_of(row))
        if update == self._sent:
            return []
        self._sent = update
        return [update]


# --- What streams read from the database, in a thread -----------------------------------------------------------------


def user_of_session(request: ASGIRequest) -> User | None:
    """Find the signed-in user as AuthenticationMiddleware does, with the session read afresh."""
    store = importlib.import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    return user if isinstance(user, User) and user.is_active else None


def owner_of_video(header: bytes, job: uuid.UUID) -> int | None:
    """Find the owner of the key in this Authorization header, when the video is theirs too."""
    key = key_of_header(header)
    if key is None or not kept_jobs(pk=job, user=key.user_id).exists():
        return None
    return key.user_id


def _recent_events(user: int, since: datetime) -> list[JobEvent]:
    """Make events of the user's live jobs and of those that ended since then."""
    jobs = GenerationJob.objects.filter(user=user, deleted_at=None)
    recent = jobs.filter(Q(finished_at=None) | Q(finished_at__gte=since))
    return [event_of(job) for job in recent.order_by("-created_at")[:SNAPSHOT_JOBS]]


def _kept_video(job: uuid.UUID, user: int) -> tuple[GenerationJob, bytes] | None:
    row = kept_jobs(pk=job, user=user).first()
    return None if row is None else (row, video_frame(row))


_rendering: dict[tuple[JobEvent, str], asyncio.Task[str]] = {}


async def _card(event: JobEvent, language: str) -> str:
    """Render a card; pages of one user that want the same card at the same time share one rendering."""
    wanted = (event, language)
    task = _rendering.get(wanted)
    if task is None:
        task = asyncio.create_task(in_database(render_card)(uuid.UUID(event.job), language))
        _rendering[wanted] = task

        def forget(done: asyncio.Task[str]) -> None:
            _rendering.pop(wanted, None)
            if not done.cancelled():
                done.exception()  # raised to every page that waits; without one it is of no interest

        task.add_done_callback(forget)
    return await asyncio.shield(task)


def _last_seen(request: ASGIRequest) -> datetime:
    """Parse when a client that comes back saw its last event; now for a new one."""
    text = request.headers.get("Last-Event-ID", "")
    if text.isascii() and text.isdecimal() and len(text) == len(str(int(time.time() * 1000))):
        return datetime.fromtimestamp(int(text) / 1000, tz=UTC)
    return timezone.now()
