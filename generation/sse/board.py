"""Who hears what: the hub's events, dealt out to the open streams of the user they are about."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from generation.events import JobEvent, hub
from generation.models import GenerationJob


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
