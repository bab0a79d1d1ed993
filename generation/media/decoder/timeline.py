"""The times of a clip's frames, and which of them makes the poster."""

from __future__ import annotations

from fractions import Fraction

from av.video.frame import VideoFrame

from .limits import Limits, Unplayable

# Luma that differs by less than this all over a frame is a blank frame: a fade-in, not a poster.
BLANK_SPREAD = 16


class Timeline:
    """Counts frames, keeps their times, and picks the frame for the poster."""

    def __init__(self, limits: Limits, declared_rate: float) -> None:
        self._limits = limits
        self._declared_rate = declared_rate
        self._start = self._end = self._last = 0.0
        self._first: VideoFrame | None = None
        self._still: VideoFrame | None = None
        self._still_is_blank = True
        self.count = 0

    @property
    def first(self) -> VideoFrame:
        assert self._first is not None
        return self._first

    @property
    def still(self) -> VideoFrame:
        return self._still or self.first

    @property
    def seconds(self) -> float:
        return self._end - self._start

    @property
    def rate(self) -> Fraction:
        """Frames a second, as they are and not as the header says."""
        span = self._last - self._start
        measured = (self.count - 1) / span if span > 0 else self._declared_rate or 1.0
        return Fraction(measured).limit_denominator(1001)

    def add(self, frame: VideoFrame) -> None:
        moment = frame.time if frame.time is not None else self._end
        if self._first is None:
            self._first, self._start = frame, moment
        elif (frame.width, frame.height) != (self._first.width, self._first.height):
            raise Unplayable("its size changes on the way")
        length = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / (self._declared_rate or 25.0)
        self.count += 1
        self._last, self._end = max(self._last, moment), max(self._end, moment + length)
        if self.seconds > self._limits.max_duration or self.count > self._limits.max_frames:
            raise Unplayable(f"it is longer than {self._limits.max_duration:g} s")
        self._consider(frame, moment - self._start)

    def _consider(self, frame: VideoFrame, seconds: float) -> None:
        """The poster: the last frame of the first half second, or the first after it that is not blank."""
        if seconds <= 0.5 or self._still_is_blank:
            blank = _is_blank(frame)
            if not blank or self._still is None:
                self._still, self._still_is_blank = frame, blank

    def finish(self) -> None:
        if self.count == 0:
            raise Unplayable("it has no frames")
        if self.count == 1:
            raise Unplayable("it is a single picture")


def _is_blank(frame: VideoFrame) -> bool:
    """Whether the first plane (luma, mostly) is the same all over; each row ends in padding that is not looked at."""
    plane = frame.planes[0]
    rows = memoryview(plane)
    step = plane.line_size * max(1, plane.height // 64)
    sample = b"".join(bytes(rows[start : start + plane.width : 7]) for start in range(0, len(rows), step))
    return max(sample) - min(sample) < BLANK_SPREAD
