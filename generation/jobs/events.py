"""Events of jobs: signals for the other apps, and live updates by one NOTIFY for every change.

One LISTEN connection a process fans the updates out. A notification sent inside a transaction is delivered when it
commits, so no listener hears of what did not happen.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from django.dispatch import Signal

from generation import database
from generation.models import GenerationJob

logger = logging.getLogger(__name__)

CHANNEL = "generation_job"
# A subscriber that does not read loses its oldest events, never the newest, and then gets a None: look again.
BACKLOG = 1000

# Sent with `jobs` inside the transaction that ends them: a receiver that only inserts rows commits or falls with it.
jobs_finished = Signal()
# Sent with `pairs` inside the transaction by which staff queue failed jobs again: of each the original and the new one.
jobs_retried = Signal()


@dataclass(frozen=True, eq=False)
class JobEvent:
    """A job as it is now: ids in hex, `step` of `steps` denoising steps done.

    Equal to itself alone: what is shared of an event that says the same may be from before the change.
    """

    job: str
    user: int
    state: str
    step: int
    steps: int
    attempt: str | None = None


def event_of(job: GenerationJob) -> JobEvent:
    return JobEvent(
        job=job.id.hex,
        user=job.user_id,
        state=job.state,
        step=job.step,
        steps=job.num_inference_steps,
        attempt=job.current_attempt_id.hex if job.current_attempt_id else None,
    )


def publish(*jobs: GenerationJob) -> None:
    """Tell every listener how these jobs stand, once the current transaction commits."""
    database.notify(CHANNEL, *(json.dumps(asdict(event_of(job))) for job in jobs))


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
        """Open a queue of every event from now on.

        Needs a running event loop; starts the listener with the first subscriber.
        """
        queue: asyncio.Queue[JobEvent | None] = asyncio.Queue(maxsize=BACKLOG)
        self._subscribers.add(queue)
        if self._listener is None or self._listener.done():
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    async def _listen(self) -> None:
        while True:
            try:
                async for payload in database.notifications(CHANNEL):
                    self._hear(payload)
            except Exception:
                logger.exception("the event listener broke, trying again")
            await asyncio.sleep(database.RECONNECT_SECONDS)

    def _hear(self, payload: str | None) -> None:
        try:
            event = None if payload is None else JobEvent(**json.loads(payload))
        except (ValueError, TypeError):
            # A newer or older version of this service may share the database during an upgrade.
            logger.warning("not an event of ours on %s: %.200s", CHANNEL, payload)
            return
        for queue in self._subscribers:
            if queue.full():
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)
            queue.put_nowait(event)


hub = Hub()
