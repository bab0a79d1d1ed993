"""Live updates: one NOTIFY for every change of a job, and one LISTEN connection a process that fans it out.

A notification sent inside a transaction is delivered when it commits, so nobody hears of what did not happen.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass

import psycopg
from django.db import connection

from generation.database import listen_parameters
from generation.models import GenerationJob

logger = logging.getLogger(__name__)

CHANNEL = "generation_job"
# A subscriber that does not read loses its oldest events, never the newest, and is told to look again.
BACKLOG = 1000
RECONNECT_SECONDS = 1.0


@dataclass(frozen=True)
class JobEvent:
    """A job as it is now: ids in hex, `step` of `steps` denoising steps done."""

    job: str
    user: int
    state: str
    step: int
    steps: int
    attempt: str | None = None


def publish(job: GenerationJob) -> None:
    """Tell every listener how the job stands, once the current transaction commits."""
    event = JobEvent(
        job=job.id.hex,
        user=job.user_id,
        state=job.state,
        step=job.step,
        steps=job.num_inference_steps,
        attempt=job.current_attempt_id.hex if job.current_attempt_id else None,
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, json.dumps(asdict(event))])


class Hub:
    """One LISTEN connection, any number of subscribers in this process.

    A subscriber that gets `None` may have missed something and looks again: the connection was lost and is there
    again, or the subscriber was too slow.
    """

    def __init__(self) -> None:
        self._subscribers: set[asyncio.Queue[JobEvent | None]] = set()
        self._listener: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[JobEvent | None]]:
        """A queue of every event from now on.

        Needs a running event loop; starts the listener with the first subscriber.
        """
        queue: asyncio.Queue[JobEvent | None] = asyncio.Queue(maxsize=BACKLOG)
        self._subscribers.add(queue)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.get_running_loop().create_task(self._listen_for_ever())
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    async def _listen_for_ever(self) -> None:
        while True:
            try:
                async for event in _notifications():
                    self._hand_out(event)
            except psycopg.OperationalError as error:
                logger.warning("the event listener lost PostgreSQL, trying again: %s", error)
            except Exception:
                logger.exception("the event listener broke, trying again")
            await asyncio.sleep(RECONNECT_SECONDS)

    def _hand_out(self, event: JobEvent | None) -> None:
        for queue in self._subscribers:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)
            queue.put_nowait(event)


async def _notifications() -> AsyncIterator[JobEvent | None]:
    """Events as they come; first a None, because what happened before LISTEN was not heard."""
    async with await psycopg.AsyncConnection.connect(**listen_parameters(), autocommit=True) as listener:
        await listener.execute(f"LISTEN {CHANNEL}")
        yield None
        async for notification in listener.notifies():
            try:
                yield JobEvent(**json.loads(notification.payload))
            except (ValueError, TypeError):
                # A newer or older version of this service may share the database during an upgrade.
                logger.warning("not an event of ours on %s: %.200s", CHANNEL, notification.payload)


hub = Hub()
