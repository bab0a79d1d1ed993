"""Reading values out of a node's JSON without trusting their types."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from generation.nodes.errors import NodeAnsweredNonsense
from generation.nodes.types import NodeHealth, Protocol

# A finished file is asked for by this name under /get_video/, so it must never be a path.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,40}")
# A node whose model starts from pictures would refuse every job: the platform sends words alone.
PICTURES_ONLY = "pictures only"
_WHY_NOT_PICTURES = "Its model makes videos from pictures; this service sends text."
_SIZE = re.compile(r"\d{1,5}x\d{1,5}")
# More jobs at once than any one server runs: a slip or a lie.
MOST_CAPACITY = 256
# Servers that are not ours have other words for the same.
_READY_WORDS = frozenset({"ready", "ok", "healthy", "up"})


def whole_number(value: object) -> int | None:
    """A count from 0 to what an integer column holds, or None for anything else (a bool is no number here)."""
    number = real_number(value)
    return int(number) if number is not None and number < 2**31 else None


def real_number(value: object) -> float | None:
    """A finite number of at least 0, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def text(value: object) -> str | None:
    """A string with something in it, or None."""
    return value.strip() or None if isinstance(value, str) else None


def profile(made_with: object) -> str | None:
    """The profile among what a clip was made with, where it is one plain word."""
    said = made_with.get("profile") if isinstance(made_with, dict) else None
    return said if isinstance(said, str) and _WORD.fullmatch(said) else None


def file_name(path: object) -> str:
    """The last part of a path that a node names, fit to be asked for; else NodeAnsweredNonsense."""
    if not isinstance(path, str):
        raise NodeAnsweredNonsense("The node named no file.")
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    if not _FILE_NAME.fullmatch(name):
        raise NodeAnsweredNonsense("The node named a file in a way that is not allowed.")
    return name


def known_file_name(path: object) -> str | None:
    """The same where a file need not be named: None when it is not, or not in a way that is allowed."""
    try:
        return file_name(path)
    except NodeAnsweredNonsense:
        return None


def node_health(body: Mapping[str, Any], protocol: Protocol) -> NodeHealth:
    """The answer of `/health`, read leniently: only `status` decides."""
    status = text(body.get("status"))
    if status is None:
        raise NodeAnsweredNonsense("The node's health has no status.")
    ready = status.lower() in _READY_WORDS
    if ready and body.get("takes_image") is True:
        ready, status, body = False, PICTURES_ONLY, dict(body) | {"detail": _WHY_NOT_PICTURES}
    return NodeHealth(
        ready=ready,
        status=status[:40],
        protocol=protocol,
        backend=text(body.get("backend")),
        model=text(body.get("model")),
        queue_depth=whole_number(body.get("queue_depth")),
        capacity=min(max(1, whole_number(body.get("capacity")) or 1), MOST_CAPACITY),
        seconds_per_step=real_number(body.get("seconds_per_step")),
        sizes=_sizes(body.get("sizes")),
        detail=body,
    )


def _sizes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(size for size in value if isinstance(size, str) and _SIZE.fullmatch(size))
