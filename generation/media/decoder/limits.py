"""What one clip may cost, and the two ways in which it is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import av

# Errors of FFmpeg that say nothing of the file: the disk, or a limit of ours.
OUR_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EACCES, errno.EROFS})


class Unplayable(Exception):
    """The file is not a video that can be shown; the text says why."""


@dataclass(frozen=True)
class Limits:
    """max_side: pixels. max_duration: seconds of video. seconds: wall clock. memory, max_bytes: bytes."""

    max_side: int
    max_duration: float
    max_frames: int
    seconds: float
    memory: int
    max_bytes: int
    threads: int


def confine(limits: Limits) -> None:
    """The kernel ends whatever outgrows this, and also what outlives a parent that was killed."""
    signal.alarm(int(limits.seconds) + 2)
    ceilings = {
        resource.RLIMIT_CPU: int(limits.seconds * limits.threads) + 2,
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_FSIZE: limits.max_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, ceiling in ceilings.items():
        # macOS refuses RLIMIT_AS; the other limits still hold there.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (ceiling, ceiling))


@contextlib.contextmanager
def decoding_errors() -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno in OUR_ERRORS:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise Unplayable("it does not decode") from error
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise Unplayable("it does not decode") from error
