"""Messages between the HTTP process and the worker, one JSON object a line, and the worker's ends of the pipes."""

import logging
import os
import queue
import threading
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gpu_node.catalog import Traits
from gpu_node.schemas import Clip

log = logging.getLogger(__name__)


class Message(BaseModel):
    """A line in one of the two directions, or a part of one."""

    model_config = ConfigDict(frozen=True)


class Run(Message):
    """Command to make one clip and write it to `path`. `image_path`: the picture that the clip starts from."""

    kind: Literal["run"] = "run"
    job_id: str
    path: str
    image_path: str | None = None
    clip: Clip


class Cancel(Message):
    """Command to stop this job at the next step, or never to start it."""

    kind: Literal["cancel"] = "cancel"
    job_id: str


class Memory(Message):
    """Memory of the GPU, or on a CPU of the machine and this process. `peak_mb`: the most this process ever took."""

    total_mb: int
    free_mb: int
    peak_mb: int


class Pace(Message):
    """Time of the GPU for clips of one shape: a denoising step, and of a whole clip all but the steps, in seconds."""

    width: int
    height: int
    frames: int
    seconds_per_step: float
    seconds_besides: float


class Ready(Message):
    """The model is loaded. `setup`: profile, precision, attention and so on, recorded with every clip.

    paces: as measured at start-up.
    """

    kind: Literal["ready"] = "ready"
    device: str
    traits: Traits
    memory: Memory
    setup: dict[str, str | bool]
    paces: list[Pace] = []


class Loading(Message):
    """The model is on its way; `detail` says how far, for people."""

    kind: Literal["loading"] = "loading"
    detail: str


class LoadFailed(Message):
    """The model could not be loaded; `permanent` when trying again is no use."""

    kind: Literal["load_failed"] = "load_failed"
    reason: str
    permanent: bool


class Started(Message):
    """The GPU begins with the job. The job before it is being written to its file, or has ended."""

    kind: Literal["started"] = "started"
    job_id: str


class Step(Message):
    """`step` denoising steps of the job are done."""

    kind: Literal["step"] = "step"
    job_id: str
    step: int


class Done(Message):
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


class Stopped(Message):
    """The job was canceled after `step` steps."""

    kind: Literal["stopped"] = "stopped"
    job_id: str
    step: int


class Failed(Message):
    """The job failed; the message can be shown to a person."""

    kind: Literal["failed"] = "failed"
    job_id: str
    code: str
    message: str


Command = Annotated[Run | Cancel, Field(discriminator="kind")]
Event = Annotated[
    Loading | Ready | LoadFailed | Started | Step | Done | Stopped | Failed, Field(discriminator="kind")
]
COMMANDS: TypeAdapter[Command] = TypeAdapter(Command)
EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def to_line(message: Message) -> bytes:
    """Return the message as one line; JSON escapes any line break inside."""
    return message.model_dump_json().encode() + b"\n"


class Inbox:
    """Commands to the worker, read by a thread, so that a cancel arrives while a job runs."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._runs: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._canceled: set[str] = set()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next_run(self) -> Run:
        return self._runs.get()

    def is_canceled(self, job_id: str) -> bool:
        return job_id in self._canceled

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._canceled.discard(job_id)

    def _read(self) -> None:
        try:
            for line in self._source:
                command = COMMANDS.validate_json(line)
                if isinstance(command, Run):
                    self._runs.put(command)
                else:
                    self._canceled.add(command.job_id)
        except Exception:
            log.exception("a command cannot be read")
        finally:
            os._exit(0)  # the HTTP process is gone, and nothing else would take the result


class Outbox:
    """Events of the worker, written one at a time, whichever thread they come from."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one event and flush it. Ends the process when the HTTP process reads no more."""
        try:
            with self._lock:
                self._target.write(to_line(event))
                self._target.flush()
        except BrokenPipeError:
            os._exit(0)
