"""Plain values that cross the border between the platform and a GPU node.

Nothing here knows of Django or of HTTP: the reconciler and the tasks fill a `GenerationRequest` from a row,
and read a `RemoteJob` back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Protocol = Literal["videos", "generate_video"]
RemoteState = Literal["queued", "in_progress", "completed", "failed", "canceled"]

FINISHED_STATES: frozenset[RemoteState] = frozenset({"completed", "failed", "canceled"})


@dataclass(frozen=True, kw_only=True)
class NodeEndpoint:
    """Where a node is and how to speak to it.

    base_url: http(s) address without a path of ours, e.g. `http://10.0.0.7:8081`; a prefix is kept.
    api_key: sent as `x-api-key` and as a bearer token; empty when the node wants none.
    """

    base_url: str
    api_key: str = field(default="", repr=False)
    protocol: Protocol = "videos"


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What one attempt asks of a node.

    id: the attempt's id, sent as Idempotency-Key: the same id is the same clip on nodes that know the header.
    num_frames: pixel frames in the delivered file. fps: frames a second. width, height: pixels.
    None leaves the choice to the node.
    """

    id: str
    prompt: str
    negative_prompt: str = ""
    num_frames: int = 16
    fps: int = 8
    num_inference_steps: int = 20
    guidance_scale: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def size(self) -> str | None:
        """`WIDTHxHEIGHT` as `/v1/videos` writes it, or None when the node is to choose."""
        return f"{self.width}x{self.height}" if self.width and self.height else None


@dataclass(frozen=True, kw_only=True)
class NodeHealth:
    """What a node says of itself.

    ready: it would take a job now. status: its own word (ready, starting, busy, draining, failed, …).
    capacity: jobs it runs at once. seconds_per_step: measured by the node, None until it has.
    sizes: `WIDTHxHEIGHT` strings it serves, empty when it does not say. detail: the whole answer.
    """

    ready: bool
    status: str
    protocol: Protocol
    backend: str | None = None
    model: str | None = None
    queue_depth: int | None = None
    capacity: int = 1
    seconds_per_step: float | None = None
    sizes: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job as its node sees it.

    remote_id: None on the field protocol, which has no ids. step of steps: denoising steps that are done.
    progress: percent. error: one sentence of the node's, when failed; error_code: its word for it, where it
    has one. file_name: what `/get_video/` wants. generation_ms: the node's own clock. stopped_at_step: set by a
    confirmed cancel. queue_position: 1 is next. profile: the node's word for how the clip is made, as `exact`.
    """

    state: RemoteState
    remote_id: str | None = None
    step: int | None = None
    steps: int | None = None
    progress: int | None = None
    error: str | None = None
    error_code: str | None = None
    file_name: str | None = None
    generation_ms: int | None = None
    stopped_at_step: int | None = None
    queue_position: int | None = None
    profile: str | None = None

    @property
    def finished(self) -> bool:
        """Nothing further will happen to it on the node."""
        return self.state in FINISHED_STATES
