"""The node's jobs: each with its state, the queue they wait in, and their files on disk.

One event loop touches them, so there are no locks.
"""

import asyncio
import logging
import re
import secrets
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, PrivateAttr, ValidationError

from gpu_node.catalog import Traits
from gpu_node.errors import Code, Refusal
from gpu_node.schemas import ClipSpec

log = logging.getLogger(__name__)

CAPACITY = 1  # clips made at the same time
CLIP_NAME = re.compile(r"[0-9a-f]{32}\.mp4")
OURS = re.compile(r"[0-9a-f]{32}\.(mp4|json|image)(\.part)?")
PART_SECONDS = 3600.0  # an unfinished file older than this belongs to a process that died

# queued → in_progress → completed | failed; a queued job can fail too (canceled, no model).
# Nothing leaves the last two.
Status = Literal["queued", "in_progress", "completed", "failed"]


class JobError(BaseModel):
    """Reason why a job failed: `code` for programs, `message` for people."""

    code: str
    message: str


class Job(ClipSpec):
    """One clip, asked for or made. Its fields are also what survives a restart, once the job has ended."""

    id: str
    created_at: float
    seed: int
    idempotency_key: str | None = None
    fingerprint: str
    status: Status = "queued"
    step: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    generated_frames: int | None = None
    made_with: dict[str, str | bool] | None = None
    was_requeued: bool = False
    stopped_at_step: int | None = None
    error: JobError | None = None

    _changed: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)

    @property
    def file_name(self) -> str:
        """The clip's name in the node's folder."""
        return f"{self.id.removeprefix('video_')}.mp4"

    @property
    def has_ended(self) -> bool:
        """True when nothing will change any more."""
        return self.status in ("completed", "failed")

    @property
    def progress(self) -> int:
        """Percent of the denoising steps; 100 only when the file is there."""
        return 100 if self.status == "completed" else min(99, self.step * 100 // self.steps)

    @property
    def generation_time_ms(self) -> int | None:
        """Milliseconds from the start on the GPU to the finished file."""
        if self.status != "completed" or self.started_at is None or self.completed_at is None:
            return None
        return round((self.completed_at - self.started_at) * 1000)

    def touch(self) -> None:
        """Wake everything that waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout: float) -> None:
        """Return at the next change, after `timeout` seconds at the latest, at once when the job has ended."""
        if self.has_ended:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    async def ended(self, timeout: float | None = None) -> None:
        """Wait for the job's end, for `timeout` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.has_ended:
                    await self._changed.wait()

    def resolve(self, traits: Traits) -> None:
        """Fill in what was left to the model."""
        if self.width is None or self.height is None:
            self.width, self.height = traits.width, traits.height
        if self.num_frames is None:
            self.num_frames = traits.frames
        if self.guidance_scale is None:
            self.guidance_scale = traits.guidance_scale
        self.generated_frames = round_up_frames(self.num_frames, unit=traits.frame_unit)


def round_up_frames(frames: int, *, unit: int = 8) -> int:
    """Return the next 8N+1, which is what CogVideoX makes (CogVideo README), 16N+1 for CogVideoX 1.5: 16 → 17."""
    return (frames + unit - 2) // unit * unit + 1


class JobQueue:
    """All jobs by id and by idempotency key, those that wait in order, and those that the worker has.

    The worker has up to three: one `handed` over ahead, which still counts as waiting, so that the GPU never waits for
    its next job; one `running` on the GPU; and those `finishing`, whose frames are being written to their files.
    """

    def __init__(self, *, store: "RecordStore", size: int) -> None:
        self._store = store
        self._size = size
        self._jobs: dict[str, Job] = {}
        self._by_key: dict[str, str] = {}
        self.waiting: deque[Job] = deque()  # the next first
        self.handed: Job | None = None
        self.running: Job | None = None
        self.finishing: list[Job] = []
        self.outcomes: Counter[str] = Counter(completed=0)
        self.clip_seconds = 0.0
        for job in store.load():
            self._remember(job)

    @property
    def is_full(self) -> bool:
        """True when one more job would be refused."""
        return len(self.waiting) + (self.running is not None) >= CAPACITY + self._size

    def find_twin(self, *, key: str | None, spec: ClipSpec) -> Job | None:
        """Return the job that was made for this key. Raises Refusal when it was another request."""
        if key is None or key not in self._by_key:
            return None
        job = self._jobs[self._by_key[key]]
        if job.fingerprint != spec.hash():
            message = "This Idempotency-Key was already used for another request."
            raise Refusal(Code.idempotency_key_reused, message)
        return job

    def add(self, *, spec: ClipSpec, key: str | None, traits: Traits | None, retry_after: int) -> Job:
        """Put a new job at the end of the queue. Raises Refusal when it is full."""
        if self.is_full:
            message = "The queue is full. Please try again later."
            raise Refusal(Code.queue_full, message, retry_after=retry_after)
        seed = secrets.randbelow(2**32) if spec.seed is None else spec.seed
        job = Job(
            id=f"video_{secrets.token_hex(16)}",
            created_at=time.time(),
            idempotency_key=key,
            fingerprint=spec.hash(),
            **spec.model_dump() | {"seed": seed},
        )
        if traits is not None:
            job.resolve(traits)
        self._remember(job)
        self.waiting.append(job)
        return job

    def get(self, job_id: str) -> Job:
        """Return the job with this id. Raises Refusal."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise Refusal(Code.not_found, "There is no such video.") from None

    def newest_first(self) -> list[Job]:
        """Return all jobs that the node knows."""
        return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)

    def position(self, job: Job) -> int | None:
        """Return 1 for the next job; None for one that does not wait."""
        return self.waiting.index(job) + 1 if job.status == "queued" else None

    @property
    def at_worker(self) -> list[Job]:
        """The jobs that the worker has begun and not ended."""
        return [*self.finishing, *([self.running] if self.running is not None else [])]

    def hand_over(self, traits: Traits) -> Job | None:
        """Return the next job for the worker to have ready; None when it has one, or nothing waits."""
        if self.handed is not None or not self.waiting:
            return None
        job = self.handed = self.waiting[0]
        job.resolve(traits)
        return job

    def start(self, job: Job) -> None:
        """Begin the job that was handed over: the GPU is at it."""
        if self.running is not None:
            self.finishing.append(self.running)
        self.waiting.remove(job)
        self.handed, self.running = None, job
        job.status = "in_progress"
        job.started_at = time.time()
        job.touch()
        self._touch_waiting()

    def take_back(self, job: Job) -> None:
        """Put a job of a worker that died back to the head of the queue."""
        self.finishing.remove(job)
        job.status, job.step, job.started_at, job.was_requeued = "queued", 0, None, True
        self.waiting.appendleft(job)
        self._touch_waiting()

    def complete(self, job: Job) -> None:
        """End the job with its clip."""
        job.status = "completed"
        self._end(job)

    def fail(self, job: Job, *, code: str, message: str) -> None:
        """End the job without a clip."""
        job.status = "failed"
        job.error = JobError(code=code, message=message)
        self._end(job)

    def cancel(self, job: Job, *, step: int) -> None:
        """End the job as stopped after `step` steps."""
        job.step = job.stopped_at_step = step
        self.fail(job, code="canceled", message="The video was canceled.")

    def interrupt(self, job: Job) -> None:
        """Forget a job that the node's end cuts off, so that its client learns to go elsewhere."""
        self.fail(job, code="node_shutdown", message="The node was shut down before the video was made.")
        self.forget(job)

    def forget(self, job: Job) -> None:
        """Drop an ended job, its record and its clip."""
        self._jobs.pop(job.id, None)
        if job.idempotency_key is not None and self._by_key.get(job.idempotency_key) == job.id:
            del self._by_key[job.idempotency_key]
        self._store.delete(job)

    def forget_ended_before(self, moment: float) -> None:
        """Drop what ended before `moment` (seconds since the epoch)."""
        for job in list(self._jobs.values()):
            if job.completed_at is not None and job.completed_at < moment:
                self.forget(job)

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        if job.idempotency_key is not None:
            self._by_key[job.idempotency_key] = job.id

    def _end(self, job: Job) -> None:
        job.completed_at = time.time()
        if job is self.running:
            self.running = None
        elif job in self.finishing:
            self.finishing.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
            self._touch_waiting()
        if job is self.handed:
            self.handed = None
        self.outcomes[job.error.code if job.error is not None else "completed"] += 1
        self.clip_seconds += (job.generation_time_ms or 0) / 1000
        self._store.image_path(job).unlink(missing_ok=True)
        self._store.save(job)
        job.touch()

    def _touch_waiting(self) -> None:
        """Wake the followers of waiting jobs: each has another position now."""
        for job in self.waiting:
            job.touch()


class RecordStore:
    """The folder of the clips: beside each clip lies a small JSON file that outlives a restart.

    Names are made by the node; nothing that a client sends becomes a path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def clip_path(self, job: Job) -> Path:
        """Return where the job's clip lies, or will lie."""
        return self._folder / job.file_name

    def image_path(self, job: Job) -> Path:
        """Return where the picture lies that the job's clip starts from, until the job ends."""
        return self.clip_path(job).with_suffix(".image")

    def find_clip(self, name: str) -> Path | None:
        """Return the clip of this name. None for a name that the node never gives, and for what is not there."""
        path = self._folder / name if CLIP_NAME.fullmatch(name) else None
        return path if path is not None and path.is_file() else None

    def save(self, job: Job) -> None:
        """Write the job's record. A full disk loses it at the next restart, not now: the clip matters more."""
        path = self.clip_path(job).with_suffix(".json")
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(job.model_dump_json(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            log.error("cannot keep the record %s: %s", path, error)

    def load(self) -> list[Job]:
        """Read all records; a file that cannot be read is named in the log and left alone."""
        records = []
        for path in self._folder.glob("*.json"):
            if OURS.fullmatch(path.name):
                try:
                    records.append(Job.model_validate_json(path.read_bytes()))
                except (OSError, ValidationError) as error:
                    log.error("cannot read the record %s: %s", path, error)
        return records

    def delete(self, job: Job) -> None:
        """Remove the record and the clip; missing files are no error."""
        clip = self.clip_path(job)
        for path in (clip.with_suffix(".json"), self.image_path(job), clip):
            path.unlink(missing_ok=True)
        self.discard_part(job)

    def discard_part(self, job: Job) -> None:
        """Remove what a worker that died left half written."""
        clip = self.clip_path(job)
        clip.with_name(clip.name + ".part").unlink(missing_ok=True)

    def sweep(self, *, older_than: float) -> None:
        """Remove clips without a record and unfinished files, by age. `older_than`: seconds since the epoch."""
        for path in self._folder.iterdir():
            if OURS.fullmatch(path.name):
                limit = time.time() - PART_SECONDS if path.suffix == ".part" else older_than
                if path.stat().st_mtime < limit:
                    path.unlink(missing_ok=True)
