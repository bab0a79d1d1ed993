"""The level-triggered loop that heals: whatever was lost (a nudge, a worker, a reconciler, a node), the
rows say what is to be done.

Each sweep follows open attempts nobody follows, stops those whose job is not wanted any more, stores what nobody
stores, ends what is past its deadline, and wakes dispatch when jobs wait and slots are free. NOTIFY only makes it come
sooner. Two reconcilers may run: a lease decides who follows what.
"""

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Iterator

from django.conf import settings
from django.db.models.functions import Now

from generation import media, privacy
from generation.database import DATABASE_AWAY, in_database
from generation.jobs import canary, enqueue, lifecycle, locks, node_health, scheduling, stored_files
from generation.jobs.events import JobEvent, hub
from generation.jobs.runner import Follower
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeError
from generation.staff import bulk_refunds, nodes

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
# How often it is looked whether stored files, or what is left of those who left, are to be removed.
REMOVAL_SECONDS = 60.0
# How often a worker is to add up what staff look at; it does nothing where nothing is new.
ADDING_UP_SECONDS = 3600.0
State = GenerationJob.State


class Reconciler:
    """Runs until `stop()`. Holds one coroutine for each attempt it follows."""

    def __init__(self) -> None:
        self._token = uuid.uuid4()
        self._followers: dict[uuid.UUID, Follower] = {}
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._trials: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._nudged_at = self._removed_at = self._forgot_at = self._added_up_at = -math.inf
        self._broken: dict[str, str] = {}

    def stop(self) -> None:
        """Ask `run` to return; leases are dropped, so that a successor goes on at once."""
        self._stopping.set()

    async def run(self) -> None:
        loops = [
            asyncio.create_task(loop)
            for loop in (self._sweep_for_ever(), self._watch_nodes(), self._listen())
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # these loops never end by themselves: whatever ended one must be heard
        finally:
            begun = [*loops, stopping, *self._tasks.values(), *self._trials.values()]
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            await self._drop_leases()

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """Whatever goes wrong in the block stops nothing else, and is tried again. Told when it begins and ends."""
        try:
            yield
        except Exception as error:
            told, self._broken[what] = self._broken.get(what), repr(error)
            if told != repr(error) and isinstance(error, DATABASE_AWAY):
                logger.warning("%s: the database is not there, trying again: %s", what, str(error).strip())
            elif told != repr(error):
                logger.exception("%s broke, trying again", what)
        else:
            if self._broken.pop(what, None):
                logger.info("%s works again", what)

    async def _sweep_for_ever(self) -> None:
        parts = {
            "ending what is overdue": self._end_overdue,
            "nudging what is to be stored": self._nudge_stores,
            "following what nobody follows": self._follow_free,
            "stopping what is not wanted any more": self._stop_unwanted,
            "nudging the dispatch": self._nudge_dispatch,
            "nudging the removal of files": self._nudge_removal,
            "forgetting closed accounts": self._forget_accounts,
            "having figures added up": self._nudge_adding_up,
            "going on with refunds": in_database(bulk_refunds.wake_stalled),
        }
        while True:
            self._wake.clear()
            for what, part in parts.items():
                with self._survived(what):
                    await part()
            await self._pause(SWEEP_SECONDS)

    async def _end_overdue(self) -> None:
        for job_id in await in_database(_overdue_jobs)():
            with self._survived(f"job {job_id.hex}: ending it by its deadline"):
                await in_database(lifecycle.expire)(job_id=job_id)

    async def _nudge_stores(self) -> None:
        for attempt_id in await in_database(_unstored_attempts)():
            await in_database(enqueue.store)(attempt_id=attempt_id)

    async def _follow_free(self) -> None:
        for attempt in await in_database(_unfollowed_attempts)(list(self._tasks)):
            if await in_database(locks.take)(attempt_id=attempt.pk, token=self._token):
                self._follow(attempt)

    async def _stop_unwanted(self) -> None:
        """As `_hear` does at once, for what no event told of."""
        going_on = [pk for pk, follower in self._followers.items() if not follower.stop_requested.is_set()]
        if going_on:
            for attempt_id in await in_database(_unwanted_attempts)(going_on):
                if follower := self._followers.get(attempt_id):
                    follower.stop_requested.set()

    async def _nudge_dispatch(self) -> None:
        nudged_lately = _elapsed(self._nudged_at) < enqueue.NUDGE_SECONDS
        if not nudged_lately and await in_database(scheduling.work_is_waiting)():
            await in_database(enqueue.dispatch)()
            self._nudged_at = time.monotonic()

    async def _nudge_removal(self) -> None:
        if _elapsed(self._removed_at) >= REMOVAL_SECONDS:
            if await in_database(stored_files.due)():
                await in_database(enqueue.remove_files)()
            self._removed_at = time.monotonic()

    async def _forget_accounts(self) -> None:
        if _elapsed(self._forgot_at) >= REMOVAL_SECONDS:
            await in_database(privacy.forget_closed_accounts)()
            self._forgot_at = time.monotonic()

    async def _nudge_adding_up(self) -> None:
        if _elapsed(self._added_up_at) >= ADDING_UP_SECONDS:
            await in_database(enqueue.add_up)()
            self._added_up_at = time.monotonic()

    def _follow(self, attempt: JobAttempt) -> None:
        follower = Follower(attempt, token=self._token)
        self._followers[attempt.pk] = follower
        self._tasks[attempt.pk] = asyncio.create_task(
            self._run(attempt, follower), name=f"follow-{attempt.pk.hex}"
        )

    async def _run(self, attempt: JobAttempt, follower: Follower) -> None:
        """One attempt's trouble must not stop the others; its lease runs out and the next sweep tries again."""
        who = f"job {attempt.job_id.hex}: following attempt {attempt.pk.hex} on {attempt.node}"
        try:
            await follower.run()
        except DATABASE_AWAY as error:
            logger.warning("%s: the database went away: %s", who, str(error).strip())
        except Exception:
            logger.exception("%s broke", who)
        finally:
            self._followers.pop(attempt.pk, None)
            self._tasks.pop(attempt.pk, None)

    async def _drop_leases(self) -> None:
        try:
            await in_database(locks.drop_all)(token=self._token)
        except DATABASE_AWAY as error:
            logger.warning(
                "the leases run out by themselves, the database is not there: %s", str(error).strip()
            )

    # --- What wakes it ---

    async def _listen(self) -> None:
        with hub.subscribe() as queue:
            while True:
                event = await queue.get()
                with self._survived("hearing of events"):
                    self._hear(event)

    def _hear(self, event: JobEvent | None) -> None:
        """A job that ended must be stopped on its node; an attempt nobody follows, or a gap in what was
        heard, is for a sweep.
        """
        attempt_id = uuid.UUID(event.attempt) if event and event.attempt else None
        follower = self._followers.get(attempt_id) if attempt_id else None
        if event and follower and event.state in (State.CANCELED, State.FAILED):
            follower.stop_requested.set()
        elif event is None or (follower is None and event.state == State.RUNNING):
            self._wake.set()

    # --- Nodes ---

    async def _watch_nodes(self) -> None:
        while True:
            with self._survived("looking at the nodes"):
                nodes = await in_database(_nodes_to_watch)()
                await asyncio.gather(*(self._examine(node) for node in nodes))
            await asyncio.sleep(settings.NODE_HEALTH_SECONDS)

    async def _examine(self, node: GpuNode) -> None:
        # One node, whatever it answers, must not keep the others from being asked.
        with self._survived(f"looking at node {node.name}"):
            await self._ask_how_it_is(node)

    async def _ask_how_it_is(self, node: GpuNode) -> None:
        try:
            health = await node_health.examine(node)
        except NodeError as error:
            await in_database(node_health.record_failure)(node, error)
            return
        if await in_database(node_health.record_health)(node, health):
            self._look_again()
            await in_database(enqueue.stop_what_was_lost)(node)
        if node.set_aside_at and health.ready and node.pk not in self._trials:
            self._trials[node.pk] = asyncio.create_task(
                self._try(node, health.protocol), name=f"try-{node.name}"
            )

    async def _try(self, node: GpuNode, protocol: str) -> None:
        """A set-aside node comes back when it makes a clip that plays."""
        try:
            if not await in_database(node_health.claim_trial)(node):
                return
            await canary.make_clip(node, protocol=protocol)
            await in_database(node_health.bring_back)(node)
            await in_database(nodes.note_canary)(node, None)
            self._look_again()
        except (NodeError, media.UnplayableVideo) as error:
            await in_database(node_health.note_failed_trial)(node, error)
            await in_database(nodes.note_canary)(node, error)
        except (media.MediaFailure, OSError, *DATABASE_AWAY) as error:
            logger.warning("node %s: the trial could not be made: %s", node.name, error)
        except Exception:
            logger.exception("node %s: the trial broke", node.name)
        finally:
            self._trials.pop(node.pk, None)

    def _look_again(self) -> None:
        """A node can take work that could not before."""
        self._nudged_at = -math.inf
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), timeout=seconds)
        except TimeoutError:
            return


def _elapsed(since: float) -> float:
    return time.monotonic() - since


def _overdue_jobs() -> list[uuid.UUID]:
    live = GenerationJob.objects.filter(state__in=GenerationJob.LIVE, deadline_at__lt=Now())
    return list(live.values_list("pk", flat=True)[:100])


def _unfollowed_attempts(followed: list[uuid.UUID]) -> list[JobAttempt]:
    free = JobAttempt.objects.filter(state=JobAttempt.State.OPEN, lease_expires_at__lt=Now())
    return list(
        free.exclude(job__state=State.STORING).exclude(pk__in=followed).select_related("job", "node")[:100]
    )


def _unwanted_attempts(followed: list[uuid.UUID]) -> list[uuid.UUID]:
    """Those whose job was canceled or ended by its deadline."""
    unwanted = JobAttempt.objects.filter(pk__in=followed, cancel_requested_at__isnull=False)
    return list(unwanted.values_list("pk", flat=True))


def _unstored_attempts() -> list[uuid.UUID]:
    """Those whose file nobody is storing: its task was lost with its worker."""
    free = JobAttempt.objects.filter(
        state=JobAttempt.State.OPEN, job__state=State.STORING, lease_expires_at__lt=Now()
    )
    return list(free.values_list("pk", flat=True)[:100])


def _nodes_to_watch() -> list[GpuNode]:
    """Switched-off nodes too: staff want to see when they are back."""
    return list(GpuNode.objects.all())
