"""The two kinds of stream: all jobs of a signed-in person as cards, and one job as the API's video object."""

import asyncio
import functools
import json
import time
import uuid
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta

from django.core.handlers.asgi import ASGIRequest
from django.utils import timezone, translation

from accounts.languages import language_for
from accounts.models import User
from generation.cards import render_card
from generation.events import JobEvent
from generation.sse.board import Inbox
from generation.sse.reading import frame_of_video, in_thread, owner_of_video, recent_events, user_of_session
from generation.sse.wire import frame

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
        user = await in_thread(user_of_session, self._request)
        return user is not None and user.pk == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        since = min(_last_seen(self._request), timezone.now() - SNAPSHOT_WINDOW)
        events = await in_thread(recent_events, self.inbox.user, since)
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
        return await in_thread(owner_of_video, self._key, self._job) == self.inbox.user

    async def snapshot(self) -> list[bytes]:
        found = await in_thread(frame_of_video, self._job, self.inbox.user)
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
            task = asyncio.create_task(in_thread(_render, uuid.UUID(event.job), language))
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
