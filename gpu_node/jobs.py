"""The jobs of this node and the line they wait in. One event loop touches them, so no locks."""

import secrets
import time
from collections import Counter, deque

from gpu_node import messages
from gpu_node.errors import Busy, KeyReused, NotFound
from gpu_node.job import Job, JobError
from gpu_node.records import RecordStore
from gpu_node.schemas import ClipSpec

CAPACITY = 1  # clips made at the same time


class JobQueue:
    """All jobs by id and by idempotency key, those that wait in order, and those that the worker has.

    The worker has up to three: one `handed` over ahead, which still counts as waiting, so that the GPU never waits for
    its next job; one `running` on the GPU; and those `finishing`, whose frames are being written to their files.
    """

    def __init__(self, *, store: RecordStore, size: int) -> None:
        self._store = store
        self._size = size
        self._jobs: dict[str, Job] = {}
        self._by_key: dict[str, str] = {}
        self._waiting: deque[Job] = deque()
        self.handed: Job | None = None
        self.running: Job | None = None
        self.finishing: list[Job] = []
        self.outcomes: Counter[str] = Counter(completed=0)
        self.clip_seconds = 0.0
        for job in store.load():
            self._remember(job)

    @property
    def depth(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether one more job would be refused."""
        return self.depth + (self.running is not None) >= CAPACITY + self._size

    def find_twin(self, *, key: str | None, spec: ClipSpec) -> Job | None:
        """The job that was made for this key. Raises KeyReused when it was another request."""
        if key is None or key not in self._by_key:
            return None
        job = self._jobs[self._by_key[key]]
        if job.fingerprint != spec.fingerprint:
            raise KeyReused("This Idempotency-Key was already used for another request.")
        return job

    def add(self, *, spec: ClipSpec, key: str | None, native: messages.Ready | None, retry_after: int) -> Job:
        """Put a new job at the end of the line. Raises Busy when it is full."""
        if self.is_full:
            raise Busy("The queue is full. Please try again later.", retry_after=retry_after)
        values = spec.model_dump() | {"seed": secrets.randbelow(2**32) if spec.seed is None else spec.seed}
        job = Job(
            id=f"video_{secrets.token_hex(16)}",
            created_at=time.time(),
            idempotency_key=key,
            fingerprint=spec.fingerprint,
            **values,
        )
        if native is not None:
            job.resolve(native)
        self._remember(job)
        self._waiting.append(job)
        return job

    def get(self, job_id: str) -> Job:
        """The job with this id. Raises NotFound."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFound("There is no such video.") from None

    def newest_first(self) -> list[Job]:
        """All jobs that the node knows."""
        return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)

    def position(self, job: Job) -> int | None:
        """1 for the next in line; None for a job that does not wait."""
        return self._waiting.index(job) + 1 if job.status == "queued" else None

    @property
    def at_worker(self) -> list[Job]:
        """What the worker has begun and not ended."""
        return [*self.finishing, *([self.running] if self.running is not None else [])]

    def hand_over(self, native: messages.Ready) -> Job | None:
        """The next job for the worker to have ready; None when it has one, or nothing waits."""
        if self.handed is not None or not self._waiting:
            return None
        job = self.handed = self._waiting[0]
        job.resolve(native)
        return job

    def start(self, job: Job) -> None:
        """The GPU begins with the job that was handed over."""
        if self.running is not None:
            self.finishing.append(self.running)
        self._waiting.remove(job)
        self.handed, self.running = None, job
        job.status = "in_progress"
        job.started_at = time.time()
        job.touch()
        self._line_moved()

    def take_back(self, job: Job) -> None:
        """The worker is gone, and with it what it had of this job: it is next in line again."""
        self.finishing.remove(job)
        job.status, job.step, job.started_at, job.was_requeued = "queued", 0, None, True
        self._waiting.appendleft(job)
        self._line_moved()

    def advance(self, job: Job, step: int) -> None:
        """`step` denoising steps are done."""
        job.step = step
        job.touch()

    def complete(self, job: Job) -> None:
        """The clip is there."""
        job.status = "completed"
        self._end(job)

    def fail(self, job: Job, *, code: str, message: str) -> None:
        """The job ends without a clip."""
        job.status = "failed"
        job.error = JobError(code=code, message=message)
        self._end(job)

    def cancel(self, job: Job, *, step: int) -> None:
        """The job was stopped after `step` steps."""
        job.step = job.stopped_at_step = step
        self.fail(job, code="canceled", message="The video was canceled.")

    def interrupt(self, job: Job) -> None:
        """The node goes away before the job ended: forget it, so that whoever asks learns it must go elsewhere."""
        self.fail(job, code="node_shutdown", message="The node was shut down before the video was made.")
        self.forget(job)

    def waiting(self) -> list[Job]:
        """The jobs in line, next first."""
        return list(self._waiting)

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
        elif job in self._waiting:
            self._waiting.remove(job)
            self._line_moved()
        if job is self.handed:
            self.handed = None
        self.outcomes[job.error.code if job.error is not None else "completed"] += 1
        self.clip_seconds += (job.generation_time_ms or 0) / 1000
        self._store.discard_image(job)
        self._store.save(job)
        job.touch()

    def _line_moved(self) -> None:
        """Everybody who waits is nearer to the front now."""
        for job in self._waiting:
            job.touch()
