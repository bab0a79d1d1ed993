"""The level-triggered loop that heals: whatever was lost (a nudge, a worker, a reconciler, a node), the
rows say what is to be done.

Each sweep follows open attempts nobody follows, stores what nobody stores, ends what is past its deadline,
and wakes dispatch when jobs wait and slots are free. NOTIFY only makes the next sweep come sooner. Two
reconcilers may run: a lease decides who follows what.
"""

import asyncio
import logging
import uuid

from django.conf import settings
from django.db.models.functions import Now

from generation import breaker, fleet, leases, leaving, lifecycle, media, scheduling, stored_files, trial
from generation.database import DATABASE_AWAY, in_database
from generation.events import JobEvent, hub
from generation.following import Follower
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeError

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
# How often it is looked whether stored files, or what is left of those who left, are to be removed.
REMOVAL_SECONDS = 60.0
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
        self._nudged_at = -lifecycle.NUDGE_SECONDS
        self._removed_at = -REMOVAL_SECONDS

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

    async def _sweep_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._sweep()
            except DATABASE_AWAY as error:
                logger.warning("the database is not there, trying again: %s", str(error).strip())
            except Exception:
                # What is wrong with one row must not end what is followed; the next sweep tries again.
                logger.exception("a sweep broke")
            await self._pause(SWEEP_SECONDS)

    async def _sweep(self) -> None:
        for job_id in await in_database(_overdue_jobs)():
            await in_database(lifecycle.expire)(job_id=job_id)
        await in_database(_nudge_stores)()
        for attempt in await in_database(_unfollowed_attempts)(list(self._tasks)):
            if await in_database(leases.take)(attempt_id=attempt.pk, token=self._token):
                self._follow(attempt)
        await self._nudge_dispatch()
        await self._nudge_removal()

    async def _nudge_removal(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._removed_at >= REMOVAL_SECONDS:
            self._removed_at = now
            await in_database(leaving.forget_closed_accounts)()
            if await in_database(stored_files.due)():
                await in_database(lifecycle.nudge_removal)()

    async def _nudge_dispatch(self) -> None:
        now = asyncio.get_running_loop().time()
        if (
            now - self._nudged_at >= lifecycle.NUDGE_SECONDS
            and await in_database(scheduling.work_is_waiting)()
        ):
            self._nudged_at = now
            await in_database(lifecycle.nudge_dispatch)()

    def _follow(self, attempt: JobAttempt) -> None:
        follower = Follower(attempt, token=self._token)
        self._followers[attempt.pk] = follower
        self._tasks[attempt.pk] = asyncio.create_task(
            self._run(attempt.pk, follower), name=f"follow-{attempt.pk.hex}"
        )

    async def _run(self, attempt_id: uuid.UUID, follower: Follower) -> None:
        try:
            await follower.run()
        except DATABASE_AWAY as error:
            logger.warning("attempt %s: the database went away: %s", attempt_id.hex, str(error).strip())
        except Exception:
            # One attempt's bug must not stop the others; its lease runs out and the next sweep tries again.
            logger.exception("following attempt %s broke", attempt_id.hex)
        finally:
            self._followers.pop(attempt_id, None)
            self._tasks.pop(attempt_id, None)

    async def _drop_leases(self) -> None:
        try:
            await in_database(leases.drop_all)(token=self._token)
        except DATABASE_AWAY as error:
            logger.warning(
                "the leases run out by themselves, the database is not there: %s", str(error).strip()
            )

    # --- What wakes it ---

    async def _listen(self) -> None:
        with hub.subscribe() as queue:
            while True:
                self._hear(await queue.get())

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
            try:
                nodes = await in_database(_nodes_to_watch)()
                await asyncio.gather(*(self._examine(node) for node in nodes))
            except DATABASE_AWAY as error:
                logger.warning("the nodes were not asked, the database is not there: %s", str(error).strip())
            await asyncio.sleep(settings.NODE_HEALTH_SECONDS)

    async def _examine(self, node: GpuNode) -> None:
        try:
            await self._ask_how_it_is(node)
        except DATABASE_AWAY:
            raise
        except Exception:
            # One node, whatever it answers, must not keep the others from being asked.
            logger.exception("node %s could not be looked at", node.name)

    async def _ask_how_it_is(self, node: GpuNode) -> None:
        try:
            health = await fleet.examine(node)
        except NodeError as error:
            await in_database(fleet.record_failure)(node, error)
            return
        if await in_database(fleet.record_health)(node, health):
            self._look_again()
        if node.set_aside_at and health.ready and node.pk not in self._trials:
            self._trials[node.pk] = asyncio.create_task(
                self._try(node, health.protocol), name=f"try-{node.name}"
            )

    async def _try(self, node: GpuNode, protocol: str) -> None:
        """A set-aside node comes back when it makes a clip that plays."""
        try:
            if not await in_database(breaker.claim_trial)(node):
                return
            await trial.make_clip(node, protocol=protocol)
            await in_database(breaker.bring_back)(node)
            self._look_again()
        except (NodeError, media.UnplayableVideo) as error:
            await in_database(breaker.note_failed_trial)(node, error)
        except (media.MediaFailure, OSError, *DATABASE_AWAY) as error:
            logger.warning("node %s: the trial could not be made: %s", node.name, error)
        finally:
            self._trials.pop(node.pk, None)

    def _look_again(self) -> None:
        """A node can take work that could not before."""
        self._nudged_at = -lifecycle.NUDGE_SECONDS
        self._wake.set()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), timeout=seconds)
        except TimeoutError:
            return


def _overdue_jobs() -> list[uuid.UUID]:
    live = GenerationJob.objects.filter(state__in=GenerationJob.LIVE, deadline_at__lt=Now())
    return list(live.values_list("pk", flat=True)[:100])


def _unfollowed_attempts(followed: list[uuid.UUID]) -> list[JobAttempt]:
    free = JobAttempt.objects.filter(state=JobAttempt.State.OPEN, lease_expires_at__lt=Now())
    return list(
        free.exclude(job__state=State.STORING).exclude(pk__in=followed).select_related("job", "node")[:100]
    )


def _nudge_stores() -> None:
    """A file that nobody is storing: its task was lost with its worker."""
    free = JobAttempt.objects.filter(
        state=JobAttempt.State.OPEN, job__state=State.STORING, lease_expires_at__lt=Now()
    )
    for attempt_id in free.values_list("pk", flat=True)[:100]:
        lifecycle.nudge_store(attempt_id=attempt_id)


def _nodes_to_watch() -> list[GpuNode]:
    """Switched-off nodes too: staff want to see when they are back."""
    return list(GpuNode.objects.all())
