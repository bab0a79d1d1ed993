"""Open clips in a short-lived process, so that a hostile or broken file cannot take a worker down with it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from generation.media.folders import atomic_write

# Started by their paths, so that nothing else of the project is imported with them.
DECODER = Path(__file__).with_name("decoder.py")
FORKING = Path(__file__).with_name("forking.py")
CONFINEMENT = Path(__file__).with_name("confinement.py")
# The decoder sees neither our secrets nor anything else of the environment but what Python needs to start.
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
# The worker is stopped, the machine is out of memory, or the decoder's own alarm went off: no fault of the file.
OUR_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGALRM})


logger = logging.getLogger(__name__)


class UnplayableVideo(Exception):
    """The file is not a video that browsers and Telegram could show, nor can it be made one. The text says why."""


class MediaFailure(Exception):
    """Our own side failed (a full disk, a busy machine, a restart); the file may be all right."""


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """A clip as every decoded frame shows it.

    width, height: pixels as a person sees them: upright and square. duration_ms: to the end of the last frame.
    fps: frames a second as they are timed. size_bytes: of the file.
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


def prepare(
    source: Path, video: Path, poster: Path, *, seconds: float = 120.0, **limits: float
) -> VideoFacts:
    """Check that a clip decodes, write `video`, which plays everywhere, and `poster`. Returns the facts of `video`.

    The video is MP4, H.264, yuv420p, upright, with square pixels, even sides, the colours of an ordinary screen, its
    first picture at 0, its sound no longer than the pictures, and its index in front: a source that is all of this is
    copied byte by byte, one whose pictures fit gets a new container only.
    The poster is a JPEG, at most 1280 pixels a side and about 300 kB; it shows half a second into the clip, or the
    first later frame that is not blank. Both files appear whole or not at all.

    seconds: wall clock: a machine that needs more is busy. limits: other values for fields of `decoder.Limits`; what
    does not keep to those is the file.

    Raises:
        UnplayableVideo: the file is at fault. MediaFailure: our own side is.
    """
    try:
        with atomic_write(video) as written, atomic_write(poster) as pictured:
            return _decode(source, written, pictured, seconds=seconds, **limits)
    except OSError as error:
        raise MediaFailure(f"The clip could not be written: {error.strerror}.") from error


class Decoders:
    """This process's forking program, started for the first clip; one clip at a time. It ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._warned = False

    def run(self, *arguments: str, seconds: float) -> tuple[str, int]:
        """Run a decoder; returns what it printed and its exit status, negative for a signal.

        Raises TimeoutError, and MediaFailure when the forking program was stopped.
        """
        with self._lock:
            program = self._running()
            assert program.stdin and program.stdout
            try:
                program.stdin.write(json.dumps(arguments).encode() + b"\n")
                program.stdin.flush()
                if not select.select([program.stdout], [], [], seconds)[0]:
                    raise TimeoutError
                done = json.loads(program.stdout.readline())
            except BaseException as error:
                # The answer to this clip must not be taken for the next one's.
                self.stop()
                if isinstance(error, BrokenPipeError | ValueError):
                    raise MediaFailure(f"The decoder was stopped (status {program.returncode}).") from None
                raise
        if done["missing"] and not self._warned:
            self._warned = True
            text = (
                "This system cannot keep the decoder of clips, which a hostile file may take over, from: %s."
            )
            logger.warning(text, ", ".join(done["missing"]))
        return done["answer"], done["status"]

    def _running(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-s", "-P", str(FORKING), str(DECODER), str(CONFINEMENT)]
        ours = self._program if self._owner == os.getpid() else None
        if ours is not None and (ours.args != command or ours.poll() is not None):
            self.stop()
            ours = None
        if ours is None:
            self._owner = os.getpid()
            kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
            ours = self._program = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Each thread's own arena would reserve 64 MB of the address space that is limited.
                env=kept | {"MALLOC_ARENA_MAX": "2"},
            )
        return ours

    def stop(self) -> None:
        """End the program, and on Linux the decoder that it has started."""
        if self._program is not None and self._owner == os.getpid():
            self._program.kill()
            self._program.communicate()
        self._program = None


decoders = Decoders()


def _decode(*paths: Path, **limits: float) -> VideoFacts:
    arguments = [json.dumps(limits), *(str(path.resolve()) for path in paths)]
    try:
        printed, status = decoders.run(*arguments, seconds=limits["seconds"])
    except TimeoutError:
        raise MediaFailure(
            f"Checking the clip took this machine more than {limits['seconds']:g} s."
        ) from None
    stopped_by = -status
    if stopped_by in OUR_SIGNALS:
        raise MediaFailure(f"The decoder was stopped (signal {stopped_by}).")
    if stopped_by == signal.SIGXCPU:
        raise UnplayableVideo("The file is unplayable: it needs more computing than is allowed.")
    if stopped_by > 0:
        raise UnplayableVideo(f"The file is unplayable: decoding it crashed (signal {stopped_by}).")
    try:
        answer = json.loads(printed)
    except ValueError:
        raise MediaFailure(f"The decoder ended with status {status} and no answer.") from None
    if "unplayable" in answer:
        raise UnplayableVideo(f"The file is unplayable: {answer['unplayable']}.")
    if "failed" in answer:
        raise MediaFailure(f"The clip could not be worked on: {answer['failed']}.")
    return VideoFacts(**answer["facts"])
