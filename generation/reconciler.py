"""The level-triggered loop that heals the loss of a task, a worker, a reconciler or a node from what the rows say.

Each sweep follows attempts with a free lease, and hands new ones over to their nodes, stops those whose job has ended,
and ends overdue jobs. NOTIFY only makes it come sooner. Two reconcilers may run: the leases divide the attempts between
them.
"""

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator

from django.conf import settings
from django.db.models.functions import Now

from accounts import limits, security_log
from generation import mails, media, privacy
from generation.database import DATABASE_AWAY, in_database
from generation.jobs import canary, enqueue, lifecycle, locks, node_health, stored_files
from generation.jobs.events import JobEvent, hub
from generation.jobs.runner import AttemptRunner
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeError, TransientNodeError
from generation.staff import bulk_refunds, jobs, nodes

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
FOLLOWED_AT_ONCE = 100
# Between two looks for stored files and for remains of closed accounts that are to be removed.
REMOVAL_SECONDS = 60.0
# Between two times that the figures of staff are added up, which is nothing where nothing is new.
ADDING_UP_SECONDS = 3600.0
State = GenerationJob.State


class Reconciler:
    """The loops, which run until `stop()`, and one coroutine for each followed attempt."""

    def __init__(self) -> None:
        self._token = uuid.uuid4()
        self._runners: dict[uuid.UUID, AttemptRunner] = {}
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._looks: dict[int, asyncio.Task[None]] = {}
        self._canaries: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._broken: dict[str, str] = {}

    def stop(self) -> None:
        """Ask `run` to return; leases are dropped, so that a successor goes on at once."""
        self._stopping.set()

    async def run(self) -> None:
        loops = [
            asyncio.create_task(loop)
            for loop in (self._sweep_for_ever(), self._watch_nodes(), self._listen(), mails.send_for_ever())
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # these loops never end by themselves: the error that ended one must be heard
        finally:
            begun = [*loops, stopping]
            for tasks in (self._tasks, self._looks, self._canaries):
                begun += tasks.values()
            for task in begun:
                task.cancel()
            await asyncio.gather(*begun, return_exceptions=True)
            try:
                await in_database(locks.drop_all)(token=self._token)
            except DATABASE_AWAY as error:
                text = "the leases run out by themselves, the database is not there: %s"
                logger.warning(text, str(error).strip())

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        """Let an error in the block stop nothing else: it is tried again, and logged when it begins and ends."""
        try:
            yield
        except Exception as error:
            known, self._broken[what] = self._broken.get(what), repr(error)
            if known != repr(error) and isinstance(error, DATABASE_AWAY):
                logger.warning("%s: the database is not there, trying again: %s", what, str(error).strip())
            elif known != repr(error):
                logger.exception("%s broke, trying again", what)
        else:
            if self._broken.pop(what, None):
                logger.info("%s works again", what)

    async def _sweep_for_ever(self) -> None:
        """Do each part as often as its seconds say, and follow new attempts at once; one that failed is due again."""
        parts: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
            "following free attempts": (0, self._follow_free),
            "ending what is overdue": (SWEEP_SECONDS, self._end_overdue),
            "stopping ended jobs": (SWEEP_SECONDS, self._stop_ended),
            "having files removed": (REMOVAL_SECONDS, in_database(_remove_files)),
            "forgetting closed accounts": (REMOVAL_SECONDS, in_database(privacy.forget_closed_accounts)),
            "forgetting used-up limits": (REMOVAL_SECONDS, in_database(limits.prune)),
            "forgetting old entries of the security log": (REMOVAL_SECONDS, in_database(security_log.prune)),
            "having figures added up": (ADDING_UP_SECONDS, in_database(enqueue.add_up)),
            "going on with refunds": (SWEEP_SECONDS, in_database(bulk_refunds.wake_stalled)),
        }
        done_at = dict.fromkeys(parts, -math.inf)
        while True:
            self._wake.clear()
            for what, (seconds, part) in parts.items():
                if time.monotonic() - done_at[what] >= seconds:
                    with self._survived(what):
                        await part()
                        done_at[what] = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout=SWEEP_SECONDS)

    async def _end_overdue(self) -> None:
        for job_id in await in_database(_overdue_jobs)():
            with self._survived(f"job {job_id.hex}: ending it by its deadline"):
                await in_database(lifecycle.expire)(job_id=job_id)

    async def _follow_free(self) -> None:
        found = await in_database(_unfollowed_attempts)(list(self._tasks))
        if len(found) == FOLLOWED_AT_ONCE:
            self._wake.set()  # there may be more
        for attempt in found:
            if await in_database(locks.take)(attempt_id=attempt.pk, token=self._token):
                runner = AttemptRunner(attempt, token=self._token)
                self._runners[attempt.pk] = runner
                self._tasks[attempt.pk] = asyncio.create_task(
                    self._run(attempt, runner), name=f"follow-{attempt.pk.hex}"
                )

    async def _stop_ended(self) -> None:
        """Do as `_hear` does at once, for jobs whose event was missed."""
        running = [pk for pk, runner in self._runners.items() if not runner.stop_requested.is_set()]
        if not running:
            return
        ended = JobAttempt.objects.filter(pk__in=running, cancel_requested_at__isnull=False)
        for attempt_id in await in_database(list)(ended.values_list("pk", flat=True)):
            if runner := self._runners.get(attempt_id):
                runner.stop_requested.set()

    async def _run(self, attempt: JobAttempt, runner: AttemptRunner) -> None:
        """Run one attempt. Its trouble stops no other; its lease runs out and the next sweep tries again."""
        what = f"job {attempt.job_id.hex}: following attempt {attempt.pk.hex} on {attempt.node}"
        try:
            await runner.run()
        except DATABASE_AWAY as error:
            logger.warning("%s: the database went away: %s", what, str(error).strip())
        except Exception:
            logger.exception("%s broke", what)
        finally:
            self._runners.pop(attempt.pk, None)
            self._tasks.pop(attempt.pk, None)

    # --- Events ---

    async def _listen(self) -> None:
        with hub.subscribe() as queue:
            while True:
                event = await queue.get()
                with self._survived("hearing of events"):
                    self._hear(event)

    def _hear(self, event: JobEvent | None) -> None:
        """Stop an ended job on its node; leave a free attempt, or a gap in the events, to a sweep."""
        attempt_id = uuid.UUID(event.attempt) if event and event.attempt else None
        runner = self._runners.get(attempt_id) if attempt_id else None
        if event and runner and event.state in (State.CANCELED, State.FAILED):
            runner.stop_requested.set()
        elif event is None or (runner is None and event.state == State.RUNNING):
            self._wake.set()

    # --- Nodes ---

    async def _watch_nodes(self) -> None:
        while True:
            with self._survived("looking at the nodes"):
                for node in await in_database(_nodes_to_watch)():
                    # One that hangs must not keep the others from being asked.
                    if node.pk not in self._looks:
                        self._looks[node.pk] = asyncio.create_task(self._examine(node))
            await asyncio.sleep(settings.NODE_HEALTH_SECONDS)

    async def _examine(self, node: GpuNode) -> None:
        try:
            with self._survived(f"looking at node {node.name}"):
                await self._look_at(node)
        finally:
            self._looks.pop(node.pk, None)

    async def _look_at(self, node: GpuNode) -> None:
        try:
            health = await node_health.examine(node)
        except NodeError as error:
            await in_database(node_health.record_failure)(node, error)
            return
        if await in_database(node_health.record_health)(node, health):
            await in_database(enqueue.dispatch)()
            await self._stop_what_was_lost(node)
        if node.next_canary_at and health.ready and node.pk not in self._canaries:
            self._canaries[node.pk] = asyncio.create_task(
                self._make_canary(node, health.protocol), name=f"canary-{node.name}"
            )

    async def _stop_what_was_lost(self, node: GpuNode) -> None:
        """Have a node that is back after a silence stop what was taken from it meanwhile."""
        lost = JobAttempt.objects.filter(node=node, state=JobAttempt.State.LOST).select_related("node")
        lately = lost.filter(closed_at__gt=locks.until(-settings.JOB_DEADLINE_SECONDS))
        silenced = lately.exclude(remote_id="").exclude(silent_since=None)
        for attempt in await in_database(list)(silenced[:50]):
            try:
                await jobs.stop(attempt)
            except NodeError as error:
                logger.info("attempt %s could not be stopped on %s: %s", attempt.pk.hex, node, error)
                if isinstance(error, TransientNodeError):
                    return  # it would not answer for the others either

    async def _make_canary(self, node: GpuNode, protocol: str) -> None:
        """Bring a node back that makes a clip that plays; set one aside that does not."""
        try:
            if not await in_database(node_health.claim_canary)(node):
                return
            await canary.make_clip(node, protocol=protocol)
            await in_database(node_health.bring_back)(node)
            await in_database(nodes.note_canary)(node, None)
            await in_database(enqueue.dispatch)()
        except (NodeError, media.UnplayableVideo) as error:
            await in_database(node_health.note_failed_canary)(node, error)
            await in_database(nodes.note_canary)(node, error)
        except (media.MediaFailure, OSError, *DATABASE_AWAY) as error:
            logger.warning("node %s: the canary clip could not be made: %s", node.name, error)
        except Exception:
            logger.exception("node %s: the canary clip broke", node.name)
        finally:
            self._canaries.pop(node.pk, None)


def _overdue_jobs() -> list[uuid.UUID]:
    live = GenerationJob.objects.filter(state__in=GenerationJob.LIVE, deadline_at__lt=Now())
    return list(live.values_list("pk", flat=True)[:100])


def _unfollowed_attempts(followed: list[uuid.UUID]) -> list[JobAttempt]:
    free = JobAttempt.objects.filter(state=JobAttempt.State.OPEN, lease_expires_at__lt=Now())
    return list(
        free.exclude(job__state=State.STORING)
        .exclude(pk__in=followed)
        .select_related("job", "node")[:FOLLOWED_AT_ONCE]
    )


def _remove_files() -> None:
    if stored_files.due():
        enqueue.remove_files()


def _nodes_to_watch() -> list[GpuNode]:
    """List all nodes, switched-off ones too: staff want to see when they are back."""
    return list(GpuNode.objects.all())
