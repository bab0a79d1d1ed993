"""The node behind its HTTP routes: takes jobs, cancels them, reports its health, shuts down."""

import asyncio
import logging
import math
import shutil
import time
from typing import Any, Literal

from gpu_node.catalog import Traits
from gpu_node.errors import Code, InvalidRequest, Refusal
from gpu_node.queue import CAPACITY, Job, JobQueue, RecordStore
from gpu_node.schemas import PICTURE, ClipSpec
from gpu_node.settings import NodeSettings
from gpu_node.supervisor import WorkerSupervisor

log = logging.getLogger(__name__)

MEGABYTE = 2**20
SWEEP_INTERVAL = 600.0
CANCEL_WAIT = 20.0  # how long a cancel request waits for the worker's answer; clients give up at about 30 s
# Shut down within 10 s in all, which is what process supervisors grant before they kill:
FINISH_SECONDS = 4.0
WORKER_SECONDS = 1.0
UNKNOWN_WAIT = 5  # seconds to Retry-After before any step was measured

NodeStatus = Literal["ready", "starting", "busy", "draining", "failed"]


class Node:
    """Everything behind the HTTP routes."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.store = RecordStore(settings.save_dir)
        self.queue = JobQueue(store=self.store, size=settings.queue_size)
        self.worker = WorkerSupervisor(settings=settings, queue=self.queue, store=self.store)
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the worker and the cleaning; needs a running event loop."""
        self._tasks = [asyncio.create_task(self.worker.run()), asyncio.create_task(self._keep_clean())]

    def submit(self, *, spec: ClipSpec, key: str | None = None, picture: bytes | None = None) -> Job:
        """Accept a job, or find the one that was made for the same key. `picture`: what the clip starts from.

        Raises Refusal: a wrong request, a key that was used, a full queue or disk, no model, the end of the node.
        """
        twin = self.queue.find_twin(key=key, spec=spec)
        if twin is not None:
            return twin
        self._check_open()
        self._check_fits_model(spec)
        traits = self.worker.ready.traits if self.worker.ready is not None else None
        job = self.queue.add(spec=spec, key=key, traits=traits, retry_after=self._retry_after())
        if picture is not None:
            try:
                self.store.image_path(job).write_bytes(picture)
            except OSError as error:
                self.queue.interrupt(job)
                message = f"The node cannot keep the picture: {error.strerror}."
                raise Refusal(Code.disk_full, message) from error
        self.worker.pump()
        return job

    def _check_open(self) -> None:
        if self._draining:
            raise Refusal(Code.unavailable, "The node is shutting down.", retry_after=UNKNOWN_WAIT)
        if self.worker.reason is not None:
            raise Refusal(Code.unavailable, self.worker.reason)
        problem = self._disk_problem()
        if problem is not None:
            raise Refusal(Code.disk_full, problem)

    def _check_fits_model(self, spec: ClipSpec) -> None:
        """Check what depends on the model: before it is loaded, against what is known of models of this name."""
        traits, model = self.traits, self.settings.model_name
        if traits.takes_image and spec.image is None:
            raise InvalidRequest(f"{PICTURE}: {model} starts from a picture", param=PICTURE)
        if spec.image is not None and not traits.takes_image:
            raise InvalidRequest(f"{PICTURE}: this node makes videos from text only", param=PICTURE)
        if traits.fixed_size and (spec.width, spec.height) not in (
            (None, None),
            (traits.width, traits.height),
        ):
            raise InvalidRequest(f"size: {model} makes {traits.width}x{traits.height} only", param="size")

    async def cancel(self, job: Job) -> None:
        """Stop a job. On return it has ended, unless the worker did not confirm within CANCEL_WAIT seconds."""
        if job.status == "queued":
            self.worker.withdraw(job)
            self.queue.cancel(job, step=0)
            self.worker.pump()
        elif job.status == "in_progress":
            self.worker.ask_to_cancel(job)
            await job.ended(CANCEL_WAIT)

    async def delete(self, job: Job) -> None:
        """Cancel the job if it still lives, then drop it and its clip. Raises Refusal if it will not stop."""
        await self.cancel(job)
        if not job.has_ended:
            raise Refusal(Code.not_ready, "The video is being canceled; please delete it again in a moment.")
        self.queue.forget(job)

    @property
    def traits(self) -> Traits:
        """The model's traits: before it is loaded, those of models of this name."""
        return self.worker.ready.traits if self.worker.ready is not None else self.settings.traits

    @property
    def status(self) -> NodeStatus:
        """State of the node; `busy` means that one more job would be refused."""
        if self._draining:
            return "draining"
        if self.reason is not None:
            return "failed"
        if self.worker.state == "starting":
            return "starting"
        return "busy" if self.queue.is_full else "ready"

    @property
    def reason(self) -> str | None:
        """Reason why the node has failed; None when it has not."""
        return self.worker.reason or self._disk_problem()

    def health(self) -> dict[str, Any]:
        """Return the node's state for /health. Anyone may read it: no paths, no prompts, no ids."""
        ready, memory, wait = self.worker.ready, self.worker.memory, self.expected_wait()
        return {
            "status": self.status,
            "reason": self.reason,
            "detail": self.reason or self.worker.detail,
            "backend": self.settings.backend,
            "model": self.settings.model_name,
            "device": ready.device if ready else None,
            "memory": memory.model_dump() if memory else None,
            "profile": self.settings.profile,
            "setup": ready.setup if ready else None,
            "queue_depth": len(self.queue.waiting),
            "running": int(bool(self.queue.at_worker)),
            "capacity": CAPACITY,
            "queue_size": self.settings.queue_size,
            "seconds_per_step": self.worker.estimates.seconds_per_step,
            "paces": self.worker.estimates.listed(),
            "expected_wait_seconds": None if wait is None else round(wait, 2),
            "idle_seconds": self.worker.latest_idle_seconds,
            "worker_restarts": self.worker.restarts,
            "free_disk_mb": self._free_disk_mb(),
            "protocols": ["videos", "generate_video"],
            "takes_image": self.traits.takes_image,
            "sizes": [f"{ready.traits.width}x{ready.traits.height}"] if ready else [],
            "max_frames": self.settings.most_frames,
            "max_steps": self.settings.max_steps,
        }

    async def drain(self) -> None:
        """Refuse new jobs, let the running one finish if it is quick, forget the rest, end the worker."""
        if self._draining:
            return
        self._draining = True
        log.info("shutting down: %d waiting, %d running", len(self.queue.waiting), len(self.queue.at_worker))
        for job in list(self.queue.waiting):
            self.worker.withdraw(job)
            self.queue.interrupt(job)
        begun = self.queue.at_worker
        await asyncio.gather(*(job.ended(FINISH_SECONDS) for job in begun))
        interrupted = [job for job in begun if not job.has_ended]
        for job in interrupted:
            self.queue.interrupt(job)
        await self.worker.stop(patience=WORKER_SECONDS)
        for job in interrupted:
            self.store.delete(job)  # what the worker wrote until its end
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _disk_problem(self) -> str | None:
        free = self._free_disk_mb()
        if free >= self.settings.min_free_mb:
            return None
        return f"The node's disk is full: {free} MB are free, {self.settings.min_free_mb} MB are needed."

    def _free_disk_mb(self) -> int:
        return shutil.disk_usage(self.settings.save_dir).free // MEGABYTE

    def expected_wait(self) -> float | None:
        """Return the seconds until a job that comes now would begin; None before anything was measured."""
        ahead = [*([self.queue.running] if self.queue.running is not None else []), *self.queue.waiting]
        times = [self.worker.estimates.seconds_left(job) for job in ahead]
        return sum(time for time in times if time is not None) if None not in times else None

    def _retry_after(self) -> int:
        """Return the seconds until the running job is likely to have made room."""
        job = self.queue.running
        left = None if job is None else self.worker.estimates.seconds_left(job)
        return UNKNOWN_WAIT if left is None else min(120, max(1, math.ceil(left)))

    async def _keep_clean(self) -> None:
        """Drop clips and records that are older than the retention time."""
        interval = min(SWEEP_INTERVAL, self.settings.retention_hours * 3600 / 4)
        while True:
            oldest = time.time() - self.settings.retention_hours * 3600
            try:
                self.queue.forget_ended_before(oldest)
                self.store.sweep(older_than=oldest)
            except OSError as error:
                log.error("cannot clean %s: %s", self.settings.save_dir, error)
            await asyncio.sleep(interval)
