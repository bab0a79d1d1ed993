"""The supervisor of the worker process: starts it, feeds it, watches it and starts it again."""

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from gpu_node import ipc
from gpu_node.eta import Estimates
from gpu_node.queue import Job, JobQueue, RecordStore
from gpu_node.schemas import Clip
from gpu_node.settings import NodeSettings

log = logging.getLogger(__name__)

LOAD_ATTEMPTS = 3  # after so many workers in a row that died while loading, the model counts as failed
LONGEST_PAUSE = 30.0
WATCH_INTERVAL = 0.5

State = Literal["starting", "ready", "failed"]


class WorkerSupervisor:
    """The one worker process. The state of each job follows what the worker reports, and nothing else."""

    def __init__(self, *, settings: NodeSettings, queue: JobQueue, store: RecordStore) -> None:
        self._settings = settings
        self._queue = queue
        self._store = store
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._failed_loads = 0
        self._gave_up = False
        self._last_sign_of_life = 0.0
        self._cancel_asked_at: dict[str, float] = {}
        self._kill_reason: str | None = None
        self.state: State = "starting"
        self.reason: str | None = None
        self.detail: str | None = None  # how far the model is while it starts
        self.ready: ipc.Ready | None = None  # the report of the last worker that loaded the model
        self.memory: ipc.Memory | None = None
        self.restarts = 0
        self.estimates = Estimates()
        # Gaps in which the GPU stood idle between two clips though the second was waiting.
        self.idle_count, self.idle_seconds = 0, 0.0
        self.latest_idle_seconds: float | None = None

    async def run(self) -> None:
        """Keep a worker alive until `stop`, or until its model turns out to be impossible to load."""
        watch = asyncio.create_task(self._watch())
        try:
            while not (self._stopping or self._gave_up):
                await self._live_once()
                if not (self._stopping or self._gave_up) and self._failed_loads:
                    # None after a worker that worked, then longer with every failure.
                    await asyncio.sleep(min(2.0**self._failed_loads, LONGEST_PAUSE))
        except Exception as error:  # a fault of this program: fail what waits and what runs
            log.exception("the worker's supervisor failed")
            reason = f"The node has an internal error: {error}"
            self._on_load_failed(reason, permanent=True)
            if self._queue.running is not None:
                self._queue.fail(self._queue.running, code="model_unavailable", message=reason)
        finally:
            watch.cancel()

    def pump(self) -> None:
        """Give the worker its next job ahead of time, if it can take one."""
        if self.state != "ready" or self.ready is None or self._stopping:
            return
        job = self._queue.hand_over(self.ready.traits)
        if job is not None:
            self._last_sign_of_life = time.monotonic()
            image = str(self._store.image_path(job)) if job.image is not None else None
            clip = Clip.model_validate(job.model_dump())  # `hand_over` has filled in the model's defaults
            path = str(self._store.clip_path(job))
            self._send(ipc.Run(job_id=job.id, path=path, image_path=image, clip=clip))

    def ask_to_cancel(self, job: Job) -> None:
        """Tell the worker to stop a job that runs; one that does not comply in time is killed by the watch."""
        if job in self._queue.at_worker and job.id not in self._cancel_asked_at:
            self._cancel_asked_at[job.id] = time.monotonic()
            self._send(ipc.Cancel(job_id=job.id))

    def withdraw(self, job: Job) -> None:
        """Tell the worker not to begin with a job that it was handed ahead of time."""
        if job is self._queue.handed:
            self._send(ipc.Cancel(job_id=job.id))

    async def stop(self, *, patience: float) -> None:
        """End the worker: by closing its input, and by force after `patience` seconds."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            log.warning("the worker did not end by itself: killing it")
            _kill(process)
            await process.wait()

    async def _live_once(self) -> None:
        """Start one worker and follow its events until it is gone."""
        command = shlex.split(self._settings.worker_command) or [sys.executable, "-m", "gpu_node.worker"]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                self._settings.engine.model_dump_json(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(self._settings),
            )
        except OSError as error:  # no memory, no more processes: may pass
            self._on_load_failed(f"The worker process cannot be started: {error.strerror}.", permanent=False)
            return
        self._process = process
        assert process.stdout is not None
        async for line in process.stdout:
            self._last_sign_of_life = time.monotonic()
            self._on_event(ipc.EVENTS.validate_json(line))
            self.pump()
        self._on_exit(await process.wait())

    def _on_event(self, event: ipc.Event) -> None:
        if isinstance(event, ipc.Loading):
            self.state, self.reason, self.detail = "starting", None, event.detail
            return
        if isinstance(event, ipc.Ready):
            log.info("%s is ready on %s", self._settings.backend, event.device)
            self.ready, self.memory = event, event.memory
            self.estimates.begin_with(event.paces)
            self.state, self.reason, self.detail = "ready", None, None
            self._failed_loads = 0
            return
        if isinstance(event, ipc.LoadFailed):
            self._on_load_failed(event.reason, permanent=event.permanent)
            return
        candidates = [self._queue.handed] if isinstance(event, ipc.Started) else self._queue.at_worker
        job = next((job for job in candidates if job is not None and job.id == event.job_id), None)
        if job is None:
            log.debug("an event for %s, which was canceled before it began", event.job_id)
        elif isinstance(event, ipc.Started):
            self._queue.start(job)
        elif isinstance(event, ipc.Step):
            job.step = event.step
            job.touch()
        elif isinstance(event, ipc.Done):
            self._on_done(job, event)
        elif isinstance(event, ipc.Stopped):
            self._queue.cancel(job, step=event.step)
        else:
            self._queue.fail(job, code=event.code, message=event.message)

    def _on_load_failed(self, reason: str, *, permanent: bool) -> None:
        log.error("%s", reason)
        self.state, self.reason = "failed", reason
        self._failed_loads += 1
        self._gave_up = permanent
        for job in list(self._queue.waiting):
            self._queue.fail(job, code="model_unavailable", message=reason)

    def _on_done(self, job: Job, event: ipc.Done) -> None:
        assert self.ready is not None
        self.memory = event.memory
        self.estimates.learn(
            job, seconds_per_step=event.seconds_per_step, seconds_besides=event.seconds_besides
        )
        if event.idle_seconds is not None:
            self.latest_idle_seconds = event.idle_seconds
            self.idle_count, self.idle_seconds = self.idle_count + 1, self.idle_seconds + event.idle_seconds
        job.made_with = self.ready.setup | {"tiled": event.tiled}
        self._queue.complete(job)

    def _on_exit(self, exit_status: int) -> None:
        """End the job that the dead worker had on its GPU, and no other."""
        signaled = exit_status < 0
        how = f"killed by {signal.Signals(-exit_status).name}" if signaled else f"exit status {exit_status}"
        if not self._stopping:
            log.error("the worker process ended (%s)", how)
            self.restarts += 1
        self._end_jobs_of_dead_worker(self._kill_reason or f"The GPU worker process died ({how}).")
        self._kill_reason = None
        if self.state == "starting" and not self._stopping:
            self._failed_loads += 1
            if self._failed_loads >= LOAD_ATTEMPTS:
                self._on_load_failed(
                    f"The worker process dies while it loads the model ({how}).", permanent=False
                )
        elif self.state == "ready":
            self.state = "starting"

    def _end_jobs_of_dead_worker(self, why: str) -> None:
        """Fail what ran. What was only being written to its file is made once more; what was to come waits on."""
        self._queue.handed = None
        for job in reversed(self._queue.at_worker):
            self._store.discard_part(job)
            if job.id in self._cancel_asked_at:
                self._queue.cancel(job, step=job.step)
            elif job is self._queue.running or job.was_requeued or self._stopping:
                self._queue.fail(job, code="worker_died", message=why)
            else:
                self._queue.take_back(job)
        self._cancel_asked_at.clear()

    async def _watch(self) -> None:
        """Kill a worker that hangs in its job, or that does not stop when told to."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            reason = self._why_kill(time.monotonic())
            if reason is not None and self._kill_reason is None and self._process is not None:
                log.error("%s Killing the worker.", reason)
                self._kill_reason = reason
                _kill(self._process)

    def _why_kill(self, now: float) -> str | None:
        if not self._queue.at_worker and self._queue.handed is None:
            return None
        alive = {job.id for job in self._queue.at_worker}
        asked = [moment for job_id, moment in self._cancel_asked_at.items() if job_id in alive]
        if asked and now - min(asked) > self._settings.cancel_seconds:
            return f"The job did not stop within {self._settings.cancel_seconds:g} seconds."
        if now - self._last_sign_of_life > self._settings.stall_seconds:
            return f"The job made no progress for {self._settings.stall_seconds:g} seconds."
        return None

    def _send(self, command: ipc.Command) -> None:
        """Write a command. To a worker that just died it is lost, and `_on_exit` ends its job."""
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(ipc.to_line(command))


def _environment(settings: NodeSettings) -> dict[str, str]:
    """Return this process's environment with this package on the path, and without the key.

    What torch compiles is kept beside the models, so that the next start finds it.
    """
    environment = {name: value for name, value in os.environ.items() if name != "VIDEO_API_KEY"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.model_cache.absolute() / "compiled"))
    # Clips of many sizes leave no fragments.
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    return environment


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in the meantime
        process.kill()
