"""What the HTTP process and the worker process say to each other: one JSON object a line, over a pipe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


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


class Cancel(_Message):
    """Stop this job at the next step, or never start it."""

    kind: Literal["cancel"] = "cancel"
    job_id: str


class Ready(_Message):
    """The model is loaded. Size in pixels and frames are those it was made for."""

    kind: Literal["ready"] = "ready"
    device: str
    width: int
    height: int
    frames: int


class LoadFailed(_Message):
    """The model could not be loaded; `permanent` when trying again is no use."""

    kind: Literal["load_failed"] = "load_failed"
    reason: str
    permanent: bool


class Step(_Message):
    """`step` denoising steps of the job are done."""

    kind: Literal["step"] = "step"
    job_id: str
    step: int


class Done(_Message):
    """The clip lies at its path."""

    kind: Literal["done"] = "done"
    job_id: str
    seconds_per_step: float


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
Event = Annotated[Ready | LoadFailed | Step | Done | Stopped | Failed, Field(discriminator="kind")]
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def to_line(message: _Message) -> bytes:
    """The message as one line; JSON escapes any line break inside."""
    return message.model_dump_json().encode() + b"\n"
