"""Values between the platform and a GPU node: requests, answers, errors, and the reading of a node's JSON.

Nothing here knows of Django or of HTTP: the reconciler and the tasks fill a `GenerationRequest` from a row, and read a
`RemoteJob` back.

Errors: transient means that the same call may succeed later, here or elsewhere; permanent, that repeating it unchanged
cannot help. Of these, `NodeRejected` is about the job and the others about the node. `DOUBTFUL` ones may come from a
proxy or another replica in the node's place, so the node is asked again before they count. The text of each is one or
two plain sentences for staff, with the cure where there is one; it never has a key or a query string in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class NodeError(Exception):
    """The node could not do what was asked."""


class TransientNodeError(NodeError):
    """The same call may succeed later."""


class PermanentNodeError(NodeError):
    """The same call will fail again."""


class NodeUnreachable(TransientNodeError):
    """No connection to the node, or it broke off in the middle."""


class NodeNotReached(NodeUnreachable):
    """No connection was made at all, so the node surely took nothing."""


class NodeTimeout(TransientNodeError):
    """The node did not answer in time; what it was asked to do may still be running."""


class NodeBusy(TransientNodeError):
    """The node's queue is full. retry_after: seconds to leave it alone."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NodeServerError(TransientNodeError):
    """The node answered with a 5xx status."""


class NodeMisconfigured(PermanentNodeError):
    """The address or the key of the node cannot be used at all."""


class NodeUnauthorized(PermanentNodeError):
    """The node does not accept the key."""


class NodeRejected(PermanentNodeError):
    """The node refused the request itself; the message is the node's own."""


class NodeAnsweredNonsense(PermanentNodeError):
    """The answer is not of the protocol: HTML, other JSON, wrong types, a redirect, a file that is not video."""


class NodeHasNoRoute(NodeAnsweredNonsense):
    """The node has no route that takes jobs, so it surely took nothing."""


class RemoteJobLost(PermanentNodeError):
    """The node does not know the job or no longer has its file."""


class ResultTooLarge(PermanentNodeError):
    """The file is larger than is allowed."""


class ResultElsewhere(PermanentNodeError):
    """The file is on a host that staff have not allowed for this node."""


# One such answer is no verdict: it may be another's, or come a moment too early.
DOUBTFUL = (NodeAnsweredNonsense, RemoteJobLost)
RemoteState = Literal["queued", "in_progress", "completed", "failed", "canceled"]


@dataclass(frozen=True, kw_only=True)
class NodeEndpoint:
    """The address, the key and the protocol of a node.

    base_url: http(s) address, e.g. `http://10.0.0.7:8081`; a prefix is kept, a route of ours at its end is not.
    api_key: sent as `x-api-key` and as a bearer token; empty when the node wants none.
    file_hosts: other hosts that finished files may be on, `*.example.com` for all below; the node's own always may.
    """

    base_url: str
    api_key: str = field(default="", repr=False)
    protocol: str = "videos"
    file_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """The request of one attempt.

    id: the attempt's id, sent as Idempotency-Key: the same id is the same clip on nodes that know the header.
    num_frames: pixel frames in the delivered file. fps: frames a second. size: `WIDTHxHEIGHT` in pixels.
    None, or an empty text, leaves the choice to the node.
    """

    id: str
    prompt: str
    negative_prompt: str = ""
    num_frames: int = 16
    fps: int = 8
    num_inference_steps: int = 20
    guidance_scale: float | None = None
    seed: int | None = None
    size: str = ""


@dataclass(frozen=True, kw_only=True)
class NodeHealth:
    """A node's answer to a health check.

    ready: it would take a job now. status: its own word (ready, starting, busy, draining, failed, …).
    capacity: jobs it runs at once. seconds_per_step: measured by the node, None until it has.
    sizes: `WIDTHxHEIGHT` strings it serves, empty when it does not say. paces: of each shape it measured the frames,
    seconds a step, seconds of a clip beside its steps. detail: the whole answer.
    """

    ready: bool
    status: str
    protocol: str
    backend: str | None = None
    model: str | None = None
    capacity: int = 1
    seconds_per_step: float | None = None
    sizes: tuple[str, ...] = ()
    paces: tuple[tuple[int, float, float], ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job as its node sees it.

    remote_id: None on the field protocol, which has no ids. step: denoising steps that are done.
    progress: percent. error: one sentence of the node's, when failed; error_code: its word for it, where it
    has one. file_name: what `/get_video/` wants. file_url: where else the file is, as the node names it.
    generation_ms: the node's own clock. stopped_at_step: set by a confirmed cancel. profile: the node's word for how
    the clip is made, as `exact`.
    """

    state: RemoteState
    remote_id: str | None = None
    step: int | None = None
    progress: int | None = None
    error: str | None = None
    error_code: str | None = None
    file_name: str | None = None
    file_url: str | None = field(default=None, repr=False)
    generation_ms: int | None = None
    stopped_at_step: int | None = None
    profile: str | None = None

    @property
    def finished(self) -> bool:
        """True once it has ended on the node."""
        return self.state in ("completed", "failed", "canceled")


# --- Values of a node's JSON, whose types are not trusted -------------------------------------------------------------
# A finished file is asked for by this name under /get_video/, so it must never be a path.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_SIZE = re.compile(r"\d{1,5}x\d{1,5}")
# More jobs at once than any one server runs: a slip or a lie.
MOST_CAPACITY = 256
# Other servers have other words for it.
_READY = re.compile(r"ready|ok|okay|healthy|up|alive|pass|passing|success|running|serving|online")
_NOT_READY = re.compile(
    r"starting|loading|initializing|warming_up|busy|draining|stopping|stopped|fail(ed|ing)?|error|unhealthy|not_ready"
    r"|unready|down|offline|unavailable|degraded|maintenance"
)
# Where a job's record names its file, or holds the object or the list that does; in this order.
_FILE_KEYS = tuple(
    map(
        re.compile,
        (
            r"((video|download|output|result|file|content)_)?(url|uri)|(unsigned_|video_)?urls",
            r"(task_)?results?|(generated_)?(videos?|samples?)|outputs?|data|metadata|content|response|(asset|artifact)s?"
            r"|generations?|files?",
            r"(?!.*(thumb|poster|image|cover|preview|frame|input|reference|audio|status|poll|cancel|self|hook|callback"
            r"|stream|web|page|log))(.*_)?(url|uri|link|href)s?",
        ),
    )
)


def whole_number(value: object) -> int | None:
    """Read a count from 0 to what an integer column holds, or None for anything else (a bool is no number here)."""
    number = real_number(value)
    return int(number) if number is not None and number < 2**31 else None


def real_number(value: object) -> float | None:
    """Read a finite number of at least 0, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def text(value: object) -> str | None:
    """Read a string that is not empty, or None."""
    return value.strip() or None if isinstance(value, str) else None


def profile(made_with: object) -> str | None:
    """Read the profile of a clip's `made_with`, where it is one plain word."""
    value = made_with.get("profile") if isinstance(made_with, dict) else None
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def file_name(path: object) -> str:
    """Return the last part of a path that a node names, fit to be asked for; else raise NodeAnsweredNonsense."""
    if not isinstance(path, str):
        raise NodeAnsweredNonsense("The node named no file.")
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    if not _FILE_NAME.fullmatch(name):
        raise NodeAnsweredNonsense("The node named a file in a way that is not allowed.")
    return name


def known_file_name(path: object) -> str | None:
    """Do the same where a file need not be named: None when it is not, or not in a way that is allowed."""
    try:
        return file_name(path)
    except NodeAnsweredNonsense:
        return None


def spelt(value: str) -> str:
    """Bring a name or a word into one spelling: lower case, joined by `_`."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", value)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")


def word(value: object) -> str:
    """Read a status word, without a prefix such as TASK_STATUS_."""
    said = spelt(value) if isinstance(value, str) else ""
    return re.sub(r"^((task|job|video|generation)_)?(status|state)_", "", said)


def file_url(record: object, *, depth: int = 4) -> str | None:
    """Find the address of the finished file in a job's record: absolute, or a path on the node."""
    if isinstance(record, str):
        return record if re.match(r"https?://|/(?!/)", record) else None
    if isinstance(record, list):
        return file_url(record[0], depth=depth) if record else None
    if not isinstance(record, dict) or not depth:
        return None
    keys = [key for known in _FILE_KEYS for key in record if known.fullmatch(spelt(key))]
    return next(filter(None, (file_url(record[key], depth=depth - 1) for key in keys)), None)


def says_how_it_is(body: Mapping[str, Any]) -> bool:
    """Tell whether the status in an answer of `/health` is a word whose meaning is known."""
    said = word(body.get("status"))
    return bool(_READY.fullmatch(said) or _NOT_READY.fullmatch(said))


def _paces(value: object) -> tuple[tuple[int, float, float], ...]:
    """Read the measured paces that our node lists; what is no pace is left out."""
    paces = []
    for row in value[:20] if isinstance(value, list) else []:
        if isinstance(row, dict):
            frames = whole_number(row.get("frames"))
            step, besides = real_number(row.get("seconds_per_step")), real_number(row.get("seconds_besides"))
            if frames and step is not None and besides is not None:
                paces.append((frames, step, besides))
    return tuple(paces)


def node_health(body: Mapping[str, Any], protocol: str) -> NodeHealth:
    """Read the answer of `/health`, leniently: only `status` decides."""
    status = text(body.get("status"))
    if status is None:
        raise NodeAnsweredNonsense("The node's health has no status.")
    ready = bool(_READY.fullmatch(word(status)))
    if ready and body.get("takes_image") is True:
        # It would refuse every job.
        why_not = "Its model makes videos from pictures; this service sends text."
        ready, status, body = False, "pictures only", dict(body) | {"detail": why_not}
    sizes = body["sizes"] if isinstance(body.get("sizes"), list) else []
    return NodeHealth(
        ready=ready,
        status=status[:40],
        protocol=protocol,
        backend=text(body.get("backend")),
        model=text(body.get("model")),
        capacity=min(max(1, whole_number(body.get("capacity")) or 1), MOST_CAPACITY),
        seconds_per_step=real_number(body.get("seconds_per_step")),
        sizes=tuple(size for size in sizes if isinstance(size, str) and _SIZE.fullmatch(size)),
        paces=_paces(body.get("paces")),
        detail=body,
    )
