"""Open clips in a short-lived process, so that a hostile or broken file cannot take a worker down with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from generation.media.folders import whole_or_nothing

# Started by its own name from this folder, so that nothing else of ours is imported with it.
_DECODER = ("-m", "decoder")
# The decoder sees neither our secrets nor anything else of the environment but what Python needs to start.
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")


class UnplayableVideo(Exception):
    """The file is not a video that browsers and Telegram could show, nor can it be made one. The text says why."""


class MediaFailure(Exception):
    """Our own side failed (a full disk, a missing folder); the file may be all right."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What a clip turned out to be when every frame of it was decoded.

    width, height: pixels. fps: frames a second as they are timed. size_bytes: of the file.
    faststart: the index comes before the pictures, so that playing can begin before all is there.
    """

    codec: str
    pix_fmt: str
    width: int
    height: int
    frames: int
    fps: float
    duration_ms: int
    size_bytes: int
    faststart: bool


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """max_side: pixels. max_duration: seconds of video. seconds: of work. memory, max_bytes: bytes."""

    max_side: int = 4096
    max_duration: float = 600.0
    max_frames: int = 36_000
    seconds: float = 120.0
    memory: int = 4 * 1024**3
    max_bytes: int = 2 * 1024**3
    threads: int = 2


DEFAULT_LIMITS = MediaLimits()


def probe(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> VideoFacts:
    """Decode every frame of a clip. Raises UnplayableVideo, and MediaFailure when the fault is ours."""
    return _run("probe", path, limits=limits)


def make_playable(source: Path, destination: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> VideoFacts:
    """Write a clip that plays everywhere: MP4, H.264, yuv420p, even sides, index in front.

    A source that is all of this is taken over byte by byte; one whose pictures fit gets a new container only.
    `destination` appears whole or not at all. Raises as `probe` does.
    """
    with _written(destination) as written:
        return _run("playable", source, written, limits=limits)


def make_poster(source: Path, destination: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> VideoFacts:
    """Write a JPEG of the clip, at most 1280 pixels a side, about 300 kB; returns the clip's facts.

    It shows half a second into the clip, or the first later frame that is not blank. Raises as `probe` does.
    """
    with _written(destination) as written:
        return _run("poster", source, written, limits=limits)


def prepare(
    source: Path, destination: Path, poster: Path, *, limits: MediaLimits = DEFAULT_LIMITS
) -> VideoFacts:
    """`make_playable` and `make_poster` with one process; returns the facts of `destination`."""
    with _written(destination) as written, _written(poster) as pictured:
        return _run("prepare", source, written, pictured, limits=limits)


def _run(command: str, *paths: Path, limits: MediaLimits) -> VideoFacts:
    words = [json.dumps(asdict(limits)), command, *(str(path.resolve()) for path in paths)]
    try:
        done = subprocess.run(
            [sys.executable, "-s", "-P", *_DECODER, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=limits.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnplayableVideo(f"The file is unplayable: it took more than {limits.seconds:g} s.") from None
    return _understood(done)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # Each thread's own arena would reserve 64 MB of the address space that is limited.
    return kept | {"MALLOC_ARENA_MAX": "2", "PYTHONPATH": str(Path(__file__).parent)}


def _understood(done: subprocess.CompletedProcess[bytes]) -> VideoFacts:
    if done.returncode < 0:
        raise UnplayableVideo(f"The file is unplayable: decoding it crashed (signal {-done.returncode}).")
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise MediaFailure(f"The decoder ended with status {done.returncode} and no answer.") from None
    if "unplayable" in answer:
        raise UnplayableVideo(f"The file is unplayable: {answer['unplayable']}.")
    if "failed" in answer:
        raise MediaFailure(f"The clip could not be worked on: {answer['failed']}.")
    return VideoFacts(**answer["facts"])


@contextmanager
def _written(destination: Path) -> Iterator[Path]:
    """Where to write what becomes `destination` when the block ends well."""
    try:
        with whole_or_nothing(destination) as partial:
            yield partial
    except OSError as error:
        raise MediaFailure(f"The clip could not be written: {error.strerror}.") from error
