"""What the HTTP process and the worker process say to each other: one JSON object a line, over a pipe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gpu_node.models import DEFAULT_GUIDANCE


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Run(_Message):
    """Make one clip and write it to `path`. `generated_frames` (8N+1) are made, the first `num_frames` are kept."""

    kind: Literal["run"] = "run"
    job_id: str
    path: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    generated_frames: int
    fps: int
    steps: int
    guidance_scale: float
    seed: int
    image: str | None = None


class Cancel(_Message):
    """Stop this job at the next step, or never start it."""

    kind: Literal["cancel"] = "cancel"
    job_id: str


class Memory(_Message):
    """Of the GPU, or on a CPU of the machine and this process. `peak_mb`: the most this process ever took."""

    total_mb: int
    free_mb: int
    peak_mb: int


class Ready(_Message):
    """The model is loaded. Size in pixels and frames are those it was made for; it makes frame_unit·N + 1 frames.

    `takes_image`: every clip starts from a picture. `fixed_size`: no other size can be made. `guidance_scale`: what it
    was tuned for, used where none is asked for. `setup`: how it runs
    (profile, precision, attention, …), recorded with every clip.
    """

    kind: Literal["ready"] = "ready"
    device: str
    width: int
    height: int
    frames: int
    frame_unit: int = 8
    takes_image: bool = False
    fixed_size: bool = False
    guidance_scale: float = DEFAULT_GUIDANCE
    memory: Memory | None = None
    setup: dict[str, str | bool] = {}


class LoadFailed(_Message):
    """The model could not be loaded; `permanent` when trying again is no use."""

    kind: Literal["load_failed"] = "load_failed"
    reason: str
    permanent: bool


class Started(_Message):
    """The GPU begins with the job. Whatever it ran before is being written to its file, or has ended."""

    kind: Literal["started"] = "started"
    job_id: str


class Step(_Message):
    """`step` denoising steps of the job are done."""

    kind: Literal["step"] = "step"
    job_id: str
    step: int


class Done(_Message):
    """The clip lies at its path.

    seconds_besides: of the GPU's time for this clip, all but the steps. idle_seconds: how long the GPU had stood idle
    since the clip before, though this one was waiting; None when it was not. tiled: decoded in tiles.
    """

    kind: Literal["done"] = "done"
    job_id: str
    seconds_per_step: float
    seconds_besides: float
    idle_seconds: float | None
    tiled: bool
    memory: Memory


class Stopped(_Message):
    """The job was canceled after `step` steps."""

    kind: Literal["stopped"] = "stopped"
    job_id: str
    step: int


class Failed(_Message):
    """The job failed; the message can be shown to a person."""

    kind: Literal["failed"] = "failed"
    job_id: str
    code: str
    message: str


Command = Annotated[Run | Cancel, Field(discriminator="kind")]
JobEvent = Started | Step | Done | Stopped | Failed
Event = Annotated[Ready | LoadFailed | JobEvent, Field(discriminator="kind")]
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def to_line(message: _Message) -> bytes:
    """The message as one line; JSON escapes any line break inside."""
    return message.model_dump_json().encode() + b"\n"
