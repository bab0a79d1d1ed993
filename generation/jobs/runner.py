"""One attempt on one node, from start to end: hand it over, follow it, stop it, and report to `lifecycle`.

Only the holder of the attempt's lease does so. A time-out or a lost connection is no verdict: the node is asked again,
by the same id, until it was silent for NODE_LOST_SECONDS, or for NODE_MOVE_SECONDS while another is idle.
"""

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from django.conf import settings

from generation import nodes
from generation.database import DATABASE_AWAY, delays, in_database, written
from generation.errors import in_its_words
from generation.jobs import lifecycle, locks, scheduling
from generation.jobs.node_health import endpoint_of
from generation.models import JobAttempt

logger = logging.getLogger(__name__)
R = TypeVar("R")

# How long a node that cannot be used just now is left alone, in seconds.
UNREACHABLE_PAUSE = 10.0
BROKEN_PAUSE = 30.0
# Failures of a node that say nothing about the job: its worker died, its model is away, or it was stopped.
NO_VERDICT = frozenset(
    [
        "worker_died",
        "gpu_error",
        "disk_full",
        "model_unavailable",
        "node_shutdown",
        "expired",
        "timeout",
        "timed_out",
    ]
)
# A node that answers at every step is asked no more often than this, in seconds.
PACE_SECONDS = 0.05
# Between two questions to a node that answers at once, in seconds.
POLL_SECONDS = 1.0
RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 30.0
# Silence after which a job that its node never said to have moves to an idle one: two posts without an answer.
NEVER_TAKEN_SECONDS = 10.0
# Before a node is asked again whose answer may be a proxy's or another replica's; after the last it counts.
DOUBT_PAUSES = (0.5, 1.0, 2.0, 4.0, 4.0)
# An answer that comes sooner than this to the request for a clip is none that a clip was made for.
QUICK_SECONDS = 5.0
# How long a node is asked to stop what was taken from it.
STOP_SECONDS = 5.0


class AttemptRunner:
    """One attempt, run by one coroutine. `attempt` must come with its job and node loaded."""

    def __init__(self, attempt: JobAttempt, *, token: uuid.UUID) -> None:
        self.attempt = attempt
        self.token = token
        self.stop_requested = asyncio.Event()
        if attempt.cancel_requested_at is not None:
            self.stop_requested.set()
        self._silent = attempt.silent_since is not None
        # The attempt was taken from a node that may still be at it.
        self._stop_there = False

    async def run(self) -> None:
        """Run until the attempt is closed, its file is being stored, or the lease is another's."""
        endpoint = endpoint_of(self.attempt.node, protocol=self.attempt.protocol)
        try:
            async with nodes.open_client(endpoint) as client:
                await (self._follow if client.background else self._hold_request)(client)
                if self._stop_there:
                    # Best effort: a node that answers nothing is asked again when it is back.
                    with contextlib.suppress(nodes.NodeError, TimeoutError):
                        async with asyncio.timeout(STOP_SECONDS):
                            await client.cancel(self.attempt.remote_id)
        except nodes.PermanentNodeError as error:
            await self._give_up(error)

    # --- Nodes that run jobs in the background ---

    async def _follow(self, client: nodes.NodeClient) -> None:
        doubts, pauses = iter(DOUBT_PAUSES), delays(longest=LONGEST_RETRY_SECONDS)
        while await self._record(locks.take):
            asked_at = time.monotonic()
            try:
                over = await self._advance(client)
            except nodes.TransientNodeError as error:
                if await self._silent_too_long(error, time.monotonic() - asked_at):
                    return
                # A server without idempotency makes a clip for each post that it took, answered or not.
                usual = RETRY_SECONDS if self.attempt.remote_id else next(pauses)
                asked = error.retry_after if isinstance(error, nodes.NodeBusy) else 0.0
                await asyncio.sleep(max(usual, min(asked, settings.LEASE_SECONDS / 3)))
                continue
            except nodes.PermanentNodeError as error:
                pause = None if self._is_certain(error) else next(doubts, None)
                if pause is None:
                    await self._give_up(error)
                    return
                logger.info("job %s: asking %s again: %s", self._job, self.attempt.node, error)
                await asyncio.sleep(pause)
                continue
            doubts = iter(DOUBT_PAUSES)
            if self._silent:
                self._silent = False
                logger.info("job %s: %s answers again", self._job, self.attempt.node)
            if over:
                return

    def _is_certain(self, error: nodes.PermanentNodeError) -> bool:
        """Tell whether asking again brings no other answer. Only the answer to a post is about the request itself."""
        if self.attempt.remote_id:
            return self.stop_requested.is_set() and isinstance(error, nodes.RemoteJobLost)
        return not isinstance(error, nodes.DOUBTFUL)

    async def _silent_too_long(self, error: nodes.TransientNodeError, waited: float) -> bool:
        """Weigh a missing answer, which is no verdict; True when it lasted so long that the job was given up here.

        waited: seconds since the question that this is about.
        """
        seconds = await self._record(lifecycle.note_silence, seconds=waited)
        if seconds is None:  # over, or another's: the lease says so next
            return False
        if not self._silent:
            self._silent = True
            logger.warning("job %s: no answer from %s: %s", self._job, self.attempt.node, error)
        if seconds > settings.NODE_LOST_SECONDS:
            await self._lost(f"silent for {seconds:.0f} s: {error}", pause=BROKEN_PAUSE, stop=True)
            return True
        # With a job that its node never said to have, nothing is lost that was made.
        taken = bool(self.attempt.remote_id)
        patience = min(settings.NODE_MOVE_SECONDS, math.inf if taken else NEVER_TAKEN_SECONDS)
        if seconds > patience and await in_database(scheduling.could_move)(self.attempt, idle=taken):
            another = "another node is idle" if taken else "another node takes jobs"
            why = f"silent for {seconds:.0f} s, and {another}: {error}"
            await self._lost(why, pause=BROKEN_PAUSE, stop=True)
            return True
        return False

    async def _advance(self, client: nodes.NodeClient) -> bool:
        """Ask the node one question and act on its answer; True when there is nothing more to follow."""
        if not self.attempt.remote_id:
            if self.stop_requested.is_set():
                # It ended before any node answered for it: there is nothing to stop.
                await self._record(lifecycle.attempt_stopped, stopped_at_step=None)
                return True
            return not await self._post(client)
        if self.stop_requested.is_set():
            stopped = await client.cancel(self.attempt.remote_id)
            if stopped is not None and stopped.finished:
                return await self._apply(stopped)
        asked_at = time.monotonic()
        remote = await self._ask(client)
        if remote is None:
            return False
        if await self._apply(remote):
            return True
        # A server without long polling answers at once; one that cannot cancel is asked as rarely.
        step, self.attempt.step = self.attempt.step, self._step(remote)
        idle = self.stop_requested.is_set() or step == self.attempt.step
        pause = POLL_SECONDS if idle else PACE_SECONDS
        await asyncio.sleep(max(0.0, pause - (time.monotonic() - asked_at)))
        return False

    async def _post(self, client: nodes.NodeClient) -> bool:
        """Hand the job over; True when the node has it. Repeating is harmless where it knows Idempotency-Key."""
        try:
            remote = await client.submit(_request_of(self.attempt))
        except (nodes.NodeBusy, nodes.NodeNotReached) as error:
            await self._refused(error)
            return False
        if remote.remote_id is None:
            await self._lost("the node gave its job no id")
            return False
        self.attempt.remote_id = remote.remote_id
        return await self._record(lifecycle.attempt_posted, remote_id=remote.remote_id)

    async def _ask(self, client: nodes.NodeClient) -> nodes.RemoteJob | None:
        """Ask for the job's state on the node; None when a cancel came in meanwhile."""
        question = asyncio.create_task(
            client.retrieve(self.attempt.remote_id, wait=settings.LEASE_SECONDS / 3)
        )
        stop = asyncio.create_task(self.stop_requested.wait())
        try:
            waited_for = {question} if self.stop_requested.is_set() else {question, stop}
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            return question.result() if question.done() else None
        finally:
            for task in (question, stop):
                task.cancel()
            await asyncio.gather(question, stop, return_exceptions=True)

    # --- Nodes that make the clip within one request ---

    async def _hold_request(self, client: nodes.NodeClient) -> None:
        """Hold the one long request that makes the clip; if this process dies meanwhile, its answer is lost."""
        if self.attempt.posted_at is not None:
            await self._lost("the request was cut off when a process of the service ended", ours=True)
            return
        if not await self._record(lifecycle.request_sent):
            return
        heartbeat = asyncio.create_task(self._keep_lease())
        try:
            # The answer comes once only, so a database that is away is waited for.
            await written(await self._generate(client), about=f"job {self._job}: its request to the node")
        finally:
            heartbeat.cancel()

    async def _generate(self, client: nodes.NodeClient) -> Callable[[], Awaitable[object]]:
        """Make the long request; returns what is to be written down of its answer."""
        seconds = settings.FIELD_NODE_TIMEOUT_SECONDS
        try:
            remote = await self._generate_undoubted(client, seconds)
        except nodes.NodeTimeout as error:
            message = f"Video generation timed out (>{seconds}s)"
            return partial(self._failed, code="timed_out", message=message, error=str(error))
        except (nodes.NodeBusy, nodes.NodeNotReached) as error:
            return partial(self._refused, error)
        except nodes.TransientNodeError as error:
            return partial(self._lost, str(error), pause=UNREACHABLE_PAUSE)
        return partial(self._apply, remote)

    async def _generate_undoubted(self, client: nodes.NodeClient, seconds: float) -> nodes.RemoteJob:
        """Make the request again where the answer came so soon that it may be a proxy's."""
        for pause in DOUBT_PAUSES:
            asked_at = time.monotonic()
            try:
                return await client.generate(_request_of(self.attempt), timeout=seconds)
            except nodes.DOUBTFUL as error:
                if time.monotonic() - asked_at > QUICK_SECONDS or self.stop_requested.is_set():
                    raise
                logger.info("job %s: asking %s again: %s", self._job, self.attempt.node, error)
                await asyncio.sleep(pause)
        return await client.generate(_request_of(self.attempt), timeout=seconds)

    async def _keep_lease(self) -> None:
        held = True
        while held:
            try:
                held = await self._record(locks.take)
            except DATABASE_AWAY as error:
                logger.warning("job %s: lease not renewed: %s", self._job, str(error).strip())
            await asyncio.sleep(settings.LEASE_SECONDS / 3)

    # --- The meaning of the answers ---

    async def _apply(self, remote: nodes.RemoteJob) -> bool:
        """Write down the node's answer; True when the attempt needs no following any more."""
        if remote.state == "completed":
            await self._record(
                lifecycle.begin_storing,
                file_name=remote.file_name or "",
                generation_ms=remote.generation_ms,
                profile=remote.profile or "",
            )
            return True
        if remote.finished:
            await self._ended_without_a_file(remote)
            return True
        step = self._step(remote)
        return not await self._record(lifecycle.record_progress, step=step, after_silence=self._silent)

    async def _ended_without_a_file(self, remote: nodes.RemoteJob) -> None:
        if self.stop_requested.is_set():
            step = remote.stopped_at_step if remote.stopped_at_step is not None else remote.step
            await self._record(lifecycle.attempt_stopped, stopped_at_step=step)
        elif remote.state == "canceled":
            await self._lost("the node says it was canceled there")
        elif remote.error_code in NO_VERDICT:
            await self._lost(remote.error or remote.error_code)
        else:
            reason = remote.error or "The node gave no reason."
            message = in_its_words(reason) if remote.error else reason
            await self._failed(code="generation_failed", message=message, error=reason)

    def _step(self, remote: nodes.RemoteJob) -> int:
        """Denoising steps done: the node's own number, else one from its percentage, else the last known."""
        total = self.attempt.job.num_inference_steps
        if remote.step is None and remote.progress is not None:
            return min(total, total * remote.progress // 100)
        return min(total, remote.step if remote.step is not None else self.attempt.step)

    async def _give_up(self, error: nodes.PermanentNodeError) -> None:
        """Asking the same again cannot help; another node may still make it."""
        if self.attempt.remote_id:
            pause = 0.0 if isinstance(error, nodes.RemoteJobLost) else BROKEN_PAUSE
            await self._lost(str(error), pause=pause, stop=True)
        elif isinstance(error, nodes.NodeRejected):
            await self._record(lifecycle.attempt_rejected, why=str(error))
        elif isinstance(error, nodes.NodeUnauthorized | nodes.NodeMisconfigured | nodes.NodeHasNoRoute):
            await self._refused(error)
        else:
            await self._lost(str(error), pause=BROKEN_PAUSE)

    async def _refused(self, error: nodes.NodeError) -> None:
        """Queue the job again: the node surely did not take it. One that would refuse every other is set aside."""
        pause = error.retry_after if isinstance(error, nodes.NodeBusy) else UNREACHABLE_PAUSE
        certain = isinstance(error, nodes.PermanentNodeError)
        await self._record(lifecycle.attempt_refused, retry_after=pause, why=str(error), certain=certain)

    async def _lost(self, error: str, *, pause: float = 0.0, ours: bool = False, stop: bool = False) -> None:
        """Take the attempt from its node. ours: by our own fault. stop: the node may still be at it."""
        logger.warning(
            "job %s: attempt %s on %s is lost: %s", self._job, self.attempt.pk.hex, self.attempt.node, error
        )
        lost = await self._record(lifecycle.attempt_lost, error=error, pause=pause, ours=ours)
        self._stop_there = stop and lost

    async def _failed(self, *, code: str, message: str, error: str) -> None:
        await self._record(lifecycle.attempt_failed, code=code, message=message, error=error)

    async def _record(self, write: Callable[..., R], **values: Any) -> R:
        """Write about the attempt, fenced by the lease."""
        return await in_database(write)(attempt_id=self.attempt.pk, token=self.token, **values)

    @property
    def _job(self) -> str:
        return self.attempt.job_id.hex


def _request_of(attempt: JobAttempt) -> nodes.GenerationRequest:
    """Ask for the attempt's job. The fields of a request have the names of the job's."""
    asked = {field.name: getattr(attempt.job, field.name) for field in fields(nodes.GenerationRequest)}
    return nodes.GenerationRequest(**asked | {"id": attempt.pk.hex})
