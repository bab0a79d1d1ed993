"""One job: a clip asked for or made."""

import asyncio
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel, PrivateAttr

from gpu_node import messages

# queued → in_progress → completed | failed; a queued job can fail too (canceled, no model).
# Nothing leaves the last two.
Status = Literal["queued", "in_progress", "completed", "failed"]


class JobError(BaseModel):
    """Why a job failed: `code` for programs, `message` for people."""

    code: str
    message: str


class Job(BaseModel):
    """One clip, asked for or made. What is here is also what survives a restart, once the job has ended."""

    id: str
    created_at: float
    prompt: str
    negative_prompt: str
    width: int | None
    height: int | None
    num_frames: int | None
    fps: int
    steps: int
    guidance_scale: float | None
    seed: int
    idempotency_key: str | None = None
    fingerprint: str
    status: Status = "queued"
    step: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    generated_frames: int | None = None
    image: str | None = None
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
        """Whether nothing will change any more."""
        return self.status in ("completed", "failed")

    @property
    def progress(self) -> int:
        """Percent of the denoising steps; 100 only when the file is there."""
        return 100 if self.status == "completed" else min(99, self.step * 100 // self.steps)

    @property
    def generation_time_ms(self) -> int | None:
        """From the start on the GPU to the finished file, in milliseconds."""
        if self.status != "completed" or self.started_at is None or self.completed_at is None:
            return None
        return round((self.completed_at - self.started_at) * 1000)

    def touch(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout: float) -> None:
        """Return at the next change, after `timeout` seconds at the latest, at once when the job has ended."""
        if self.has_ended:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout)

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait for the job's end, for `timeout` seconds at most; whether it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not self.has_ended:
                    await self._changed.wait()
        return self.has_ended

    def resolve(self, native: messages.Ready) -> None:
        """Fill in what was left to the model."""
        if self.width is None or self.height is None:
            self.width, self.height = native.width, native.height
        if self.num_frames is None:
            self.num_frames = native.frames
        if self.guidance_scale is None:
            self.guidance_scale = native.guidance_scale
        self.generated_frames = round_up_frames(self.num_frames, unit=native.frame_unit)


def round_up_frames(frames: int, *, unit: int = 8) -> int:
    """The next 8N+1, which is what CogVideoX makes (CogVideo README), 16N+1 for CogVideoX 1.5: 16 → 17."""
    return (frames + unit - 2) // unit * unit + 1
