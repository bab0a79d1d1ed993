"""The program that opens clips: forking.py forks it for one file, under limits, and it is gone when it is done.

A clip comes from a machine that is not trusted, and decoders crash. So this runs apart from the worker, imports neither
Django nor any other module of the project, sees no environment, and answers with one line of JSON on stdout:
{"facts": {…}}, {"unplayable": "why"} or {"failed": "what went wrong on our side"}.

    python decoder.py LIMITS_JSON SOURCE VIDEO POSTER

VIDEO becomes an MP4 that plays everywhere: H.264, yuv420p, even sides, index in front. POSTER becomes a JPEG.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import importlib
import json
import math
import os
import pkgutil
import resource
import shutil
import signal
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, groupby, pairwise, product
from pathlib import Path
from statistics import median
from typing import Any, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.filter import Graph
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

# PyAV imports some of itself when it meets a stream of that kind; by then no file can be read any more.
for found in pkgutil.walk_packages(av.__path__, "av."):
    if found.name != "av.__main__":
        importlib.import_module(found.name)

SMALLEST_SIDE = 16
POSTER_SIDE = 1280
POSTER_BYTES = 300_000
# Luma that differs by less than this all over a frame is a blank frame: a fade-in, not a poster.
BLANK_SPREAD = 16
# What every browser, Telegram and iOS play; High 10 and 4:4:4 are H.264 too, and play almost nowhere.
PLAYABLE_PROFILES = frozenset({"Constrained Baseline", "Baseline", "Main", "High"})
# Intervals that differ by less are one rate: Matroska rounds to milliseconds.
STEADY_SECONDS = 0.0025
# The sampling rates of AAC that players take (ISO/IEC 14496-3, 1.6.3.4), and the highest that converted sound gets.
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
HIGHEST_RATE = 48_000
AAC_FRAME = 1024
# An edit list hides this many packets at most at the head of AAC: what its encoder needs to start.
AAC_PRIMING = 3
# Ends that differ by less are one: the last packet of AAC is seldom full.
SLACK_SECONDS = 0.1
# What an MP4 begins with, or a QuickTime movie, which needs no `ftyp`.
FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
# The outermost elements of Matroska and WebM.
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
# Errors of FFmpeg that say nothing of the file: the disk, or a limit of ours.
OUR_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EACCES, errno.EROFS})
TOO_MUCH_MEMORY = "it needs more memory than is allowed"
# A limit of `confine` was met: the file is at fault, not the disk.
OUTGROWN = {errno.ENOMEM: TOO_MUCH_MEMORY, errno.EFBIG: "it grows larger than is allowed"}

# What a picture's numbers mean (ITU-T H.273, tables 2 to 4).
BT709, UNSPECIFIED, BT2020, P3 = 1, 2, 9, 12
PQ, HLG = 16, 18
# The matrices that FFmpeg converts from: those of RGB, BT.709, FCC, BT.601 twice, SMPTE 240M and BT.2020.
MATRICES = frozenset({0, BT709, UNSPECIFIED, 4, 5, 6, 7, BT2020})
# Candela a square metre: white on an ordinary screen (ITU-R BT.2408), and the brightest that HLG is shown at.
SDR_WHITE, HLG_PEAK = 203.0, 1000.0
SDR_GAMMA = 2.4
# SMPTE ST 2084.
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
# From linear light in other primaries to BT.709 (ITU-R BT.2087 for BT.2020).
BT2020_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
P3_TO_BT709 = ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979))
SAME_PRIMARIES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
# FFmpeg's haldclut takes a table of CUBE_LEVEL² steps a channel as a picture with sides of CUBE_LEVEL³ pixels.
CUBE_LEVEL = 6


class Unplayable(Exception):
    """The file is not a video that can be shown; the text says why."""


@dataclass(frozen=True)
class Limits:
    """The limits of one clip.

    seconds: wall clock. cpu_seconds: what a free machine computes in less than `seconds`, a busy one never meets it.
    max_side: pixels. max_duration: seconds of video. memory, max_bytes: bytes.
    """

    seconds: float
    cpu_seconds: int = 180
    max_side: int = 4096
    max_duration: float = 600.0
    max_frames: int = 36_000
    memory: int = 4 * 1024**3
    max_bytes: int = 2 * 1024**3
    threads: int = 2


@dataclass
class Survey:
    """The result of one pass over every frame.

    container_fits: all but the pictures plays everywhere as it is. codec_fits: the pictures do. took: seconds.
    """

    facts: dict[str, Any]
    timeline: Timeline
    look: Look
    sound: Sound | None
    container_fits: bool
    codec_fits: bool
    took: float


def main(limits_json: str, *paths: str) -> None:
    limits = Limits(**json.loads(limits_json))
    confine(limits)
    try:
        answer: dict[str, Any] = {"facts": prepare(*map(Path, paths), limits=limits)}
    except Unplayable as error:
        answer = {"unplayable": str(error)}
    except MemoryError:
        answer = {"unplayable": TOO_MUCH_MEMORY}
    except OSError as error:
        if error.errno in OUTGROWN:
            answer = {"unplayable": OUTGROWN[error.errno]}
        else:
            answer = {"failed": error.strerror or type(error).__name__}
    except Exception as error:
        # A mistake of ours: the worker's log should say which.
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))  # noqa: T201  (stdout is the way back)


def confine(limits: Limits) -> None:
    """Have the kernel end what outgrows the limits, and what outlives a parent that was killed."""
    signal.alarm(int(limits.seconds) + 2)
    ceilings = {
        # The first limit ends the process by SIGXCPU, which says why; the second by SIGKILL, which does not.
        resource.RLIMIT_CPU: (limits.cpu_seconds, limits.cpu_seconds + 5),
        resource.RLIMIT_AS: (limits.memory, limits.memory),
        resource.RLIMIT_FSIZE: (limits.max_bytes, limits.max_bytes),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, ceiling in ceilings.items():
        # macOS refuses RLIMIT_AS; the other limits still hold there.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, ceiling)


def prepare(source: Path, video: Path, poster: Path, *, limits: Limits) -> dict[str, Any]:
    """Check the clip, write its poster, and write a video that plays everywhere. Returns the facts of that video.

    A source that plays everywhere is copied byte by byte.
    """
    found = survey(source, limits)
    with decoding_errors():
        write_poster(found, poster)
    if found.container_fits and found.codec_fits:
        shutil.copyfile(source, video)
        return found.facts
    convert(source, video, found, limits)
    return survey(video, limits).facts


# --- Survey: every frame is decoded once ------------------------------------------------------------------------------
def survey(source: Path, limits: Limits) -> Survey:
    """Decode every frame once. Raises Unplayable for anything a person could not watch."""
    started = time.monotonic()
    with opened(source) as container, decoding_errors():
        stream = video_stream(container)
        _check_size(stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = limits.threads
        timeline = Timeline(limits, stream)
        for packet in container.demux(stream):
            timeline.take(packet)
        timeline.finish()
        _check_all_is_there(source, stream, timeline)
        look = look_of(stream, timeline, limits)
        sound = listen(source, timeline)
        took = time.monotonic() - started
        return _described(source, container, timeline, look, sound, took)


@contextlib.contextmanager
def opened(source: Path, **options: str) -> Iterator[InputContainer]:
    """Open by the format its first bytes name: guessing would also try playlists, which open other files."""
    with source.open("rb") as file:
        head = file.read(12)
    if not head:
        raise Unplayable("the file is empty")
    kind = "mov" if head[4:8] in FIRST_BOXES else "matroska" if head[:4] == EBML else None
    if kind is None:
        raise Unplayable("it is neither MP4 nor WebM")
    if kind == "matroska":
        _check_segment(source)
    else:
        _check_fragments(source)
    try:
        container = av.open(str(source), "r", format=kind, options=options | {"protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        raise Unplayable("it is cut short or damaged") from error
    with container:
        yield container


@contextlib.contextmanager
def decoding_errors() -> Iterator[None]:
    """Turn what FFmpeg raises into Unplayable, or into OSError where the disk or a limit is at fault."""
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno in OUR_ERRORS:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise Unplayable("it does not decode") from error
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise Unplayable("it does not decode") from error


def _check_segment(source: Path) -> None:
    """Compare the size of a Matroska file with what its outermost elements promise (RFC 8794, 4 to 6).

    Its demuxer takes the end of the file for the end of the clip. A live recording promises nothing.
    """
    end = 0
    with source.open("rb") as file:
        for kind in (EBML, SEGMENT):
            if file.read(4) != kind:
                return
            first = file.read(1)
            length = 9 - first[0].bit_length() if first and first[0] else 0
            size = int.from_bytes(first + file.read(length - 1)) - (1 << 7 * length) if length else -1
            if not 0 <= size < (1 << 7 * length) - 1:
                return
            end = file.tell() + size
            file.seek(end)
    if source.stat().st_size < end:
        raise Unplayable("it is cut short")


def _check_fragments(source: Path) -> None:
    """Check that the last fragment of an MP4 is whole: no index counts the frames of all of them."""
    boxes = list(_top_level_boxes(source))
    ends = [end for kind, end in boxes if kind in (b"moof", b"mdat")]
    if any(kind == b"moof" for kind, _ in boxes) and max(ends) > source.stat().st_size:
        raise Unplayable("it is cut short")


def video_stream(container: InputContainer) -> VideoStream:
    """Return the first video that is no cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise Unplayable("it has no video in it")
    # Without a decoder PyAV has no context to offer.
    if streams[0].codec_context is None:
        raise Unplayable("its codec is not known")
    return streams[0]


def audio_stream(container: InputContainer) -> AudioStream | None:
    """Return the first audio there is a decoder for; other audio is left out rather than failing the pictures."""
    return next((audio for audio in container.streams.audio if audio.codec_context is not None), None)


def decoded(packet: Packet[VideoStream]) -> Iterator[VideoFrame]:
    """Yield the frames of a packet, with a matrix that FFmpeg can convert from."""
    # A packet without data repeats the picture before it; to the decoder it would be the end.
    if packet.dts is not None and not packet.size:
        return
    for frame in packet.decode():
        if frame.colorspace not in MATRICES:
            frame.colorspace = BT2020 if frame.color_primaries == BT2020 else UNSPECIFIED
        yield frame


def _check_size(width: int, height: int, limits: Limits) -> None:
    if not (min(width, height) >= SMALLEST_SIDE and max(width, height) <= limits.max_side):
        raise Unplayable(f"its size of {width}x{height} pixels is out of bounds")


def _check_all_is_there(source: Path, stream: VideoStream, timeline: Timeline) -> None:
    """Compare the samples with what the index promises, those included that an edit list hides."""
    if timeline.packets >= stream.frames:
        return
    with opened(source, ignore_editlist="1") as whole:
        packets = sum(packet.dts is not None for packet in whole.demux(video_stream(whole)))
    if packets < stream.frames:
        raise Unplayable(f"it is cut short: {packets} of {stream.frames} frames are there")


class Timeline:
    """The times of a clip's frames, and the frames that stand for all of them.

    tick: the unit of times, in seconds. times: when each frame is shown, from the first at 0, and when the last ends.
    first: the first frame. still: the frame that makes the poster. brightest: the highest number of any channel in HDR,
    from 0 to 1.
    """

    def __init__(self, limits: Limits, stream: VideoStream) -> None:
        self._limits, self._stream = limits, stream
        unit = stream.time_base or Fraction(1, 90_000)
        # Fine enough to move a frame between two others, coarse enough for the 32 bits of an MP4.
        self.tick = unit if 10_000 <= 1 / unit <= 1_000_000 else Fraction(1, 90_000)
        self._usual = max(1, round(1 / (stream.average_rate or 25) / self.tick))
        self._moments: list[int] = []
        self._last_length = self._usual
        self._last_dts: int | None = None
        self._still_is_blank = True
        self.packets = 0
        self.hides_frames = False
        self.is_strict = True
        self.ends_as_declared = False
        self.times: list[int] = []
        self.brightest = 0.0
        self.first: VideoFrame
        self.still: VideoFrame

    @property
    def count(self) -> int:
        return len(self._moments)

    @property
    def start(self) -> Fraction:
        """When the source shows its first frame, in seconds."""
        return self._moments[0] * self.tick

    @property
    def seconds(self) -> float:
        return float(self.times[-1] * self.tick)

    @property
    def rate(self) -> Fraction:
        """Frames a second as they are timed, not as the header says."""
        return Fraction((self.count - 1) / (self.times[-2] * self.tick)).limit_denominator(1001)

    @property
    def is_steady(self) -> bool:
        intervals = [later - earlier for earlier, later in pairwise(self.times)]
        return (max(intervals) - min(intervals)) * self.tick <= STEADY_SECONDS

    def take(self, packet: Packet[VideoStream]) -> None:
        """Count the frames of a packet. Raises Unplayable when it is damaged, or the clip too long."""
        if packet.is_corrupt:
            raise Unplayable("it is cut short")
        if packet.dts is not None:
            self.packets += 1
            self.hides_frames |= packet.is_discard
            self.is_strict &= self._last_dts is None or packet.dts > self._last_dts
            self._last_dts = packet.dts
        for frame in decoded(packet):
            if frame.is_corrupt:
                raise Unplayable("it is damaged")
            self._add(frame)

    def _add(self, frame: VideoFrame) -> None:
        _check_size(frame.width, frame.height, self._limits)
        unit = (frame.time_base or 0) / self.tick
        if not self._moments:
            self.first = self.still = frame
            moment = round((frame.pts or 0) * unit)
        else:
            moment = self._moments[-1] + self._last_length if frame.pts is None else round(frame.pts * unit)
            self.is_strict &= moment > self._moments[-1]
            moment = max(moment, self._moments[-1])
        self._moments.append(moment)
        self._last_length = round((frame.duration or 0) * unit) or self._usual
        since = (moment - self._moments[0]) * self.tick
        if since > self._limits.max_duration or self.count > self._limits.max_frames:
            raise self._too_long()
        # The poster: the last frame of the first half second, or the first after it that is not blank.
        if (since <= 0.5 or self._still_is_blank) and not _is_blank(frame):
            self.still, self._still_is_blank = frame, False
        if self.first.color_trc in (PQ, HLG):
            self.brightest = max(self.brightest, _brightest(frame))

    def finish(self) -> None:
        """Give each frame its time. Raises Unplayable when there are fewer than two, or the clip is too long."""
        if self.count < 2:
            raise Unplayable("it is a single picture" if self.count else "it is cut short or damaged")
        last = self._moments[-1]
        end = last + self._last_length
        # In an MP4 a sample lasts until the next one is decoded, not until it is shown: its track knows better.
        unit = (self._stream.time_base or 0) / self.tick
        declared = round(((self._stream.start_time or 0) + (self._stream.duration or 0)) * unit)
        if last < declared < end and not self.hides_frames:
            end = declared
        is_declared = bool(self._stream.duration)  # fragments are not
        self.ends_as_declared = not is_declared or abs(declared - end) * self.tick <= SLACK_SECONDS
        self.times = _spread(self._moments, end, self._usual)
        if self.seconds > self._limits.max_duration:
            raise self._too_long()

    def _too_long(self) -> Unplayable:
        return Unplayable(f"it is longer than {self._limits.max_duration:g} s")


def _spread(moments: list[int], end: int, usual: int) -> list[int]:
    """Return times from 0 to the end, each later than the one before: frames that share one move into the gap after it.

    usual: the interval to take where the others do not say one.
    """
    intervals = [later - earlier for earlier, later in pairwise(moments) if later > earlier]
    usual = round(median(intervals)) if intervals else usual
    groups = [(moment, len(list(same))) for moment, same in groupby(moments)]
    last, repeats = groups[-1]
    if repeats > 1:
        end = max(end, last + repeats * usual)
    times: list[int] = []
    for (moment, frames), (after, _) in pairwise([*groups, (end, 1)]):
        step = min(usual, (after - moment) // frames)
        for place in range(frames):
            due = moment + place * step
            times.append(max(due, times[-1] + 1) if times else due)
    times.append(max(end, times[-1] + 1))
    return [due - moments[0] for due in times]


def _is_blank(frame: VideoFrame) -> bool:
    """Check that the luma is the same all over; each row ends in padding, which is left out."""
    plane = frame.reformat(format="gray").planes[0]
    rows = memoryview(plane)
    step = plane.line_size * max(1, plane.height // 64)
    sample = b"".join(bytes(rows[start : start + plane.width : 7]) for start in range(0, len(rows), step))
    return max(sample) - min(sample) < BLANK_SPREAD


def _brightest(frame: VideoFrame) -> float:
    """Return the highest number of any channel, from 0 to 1; a few pixels do not count, they may be overshoot."""
    small = frame.reformat(width=96, height=96, format="rgb48le", interpolation="AREA")
    numbers = sorted(memoryview(small.planes[0]).cast("B").cast("H"))
    return numbers[len(numbers) * 499 // 500] / 65535


def _described(
    source: Path, container: InputContainer, timeline: Timeline, look: Look, sound: Sound | None, took: float
) -> Survey:
    first, codec = timeline.first, video_stream(container).codec_context
    faststart = _has_index_in_front(source)
    is_mov = "mov" in container.format.name
    is_mp4 = is_mov and container.metadata.get("major_brand", "").strip() != "qt"
    facts = {
        "codec": codec.codec.canonical_name,
        "pix_fmt": first.format.name,
        "width": look.width,
        "height": look.height,
        "frames": timeline.count,
        "fps": round(float(timeline.rate), 3),
        "duration_ms": round(timeline.seconds * 1000),
        "size_bytes": source.stat().st_size,
        "faststart": faststart,
    }
    return Survey(
        facts=facts,
        timeline=timeline,
        look=look,
        sound=sound,
        container_fits=is_mp4
        and faststart
        and timeline.start == 0
        and len(container.streams.video) == 1
        and len(container.streams.audio) == (1 if sound and sound.fits else 0),
        # Matroska leaves out the decoding times that MP4 needs, so its frames are never copied.
        codec_fits=is_mov
        and facts["codec"] == "h264"
        and facts["pix_fmt"] == "yuv420p"
        and codec.profile in PLAYABLE_PROFILES
        and look.is_as_stored
        and timeline.is_strict
        and timeline.ends_as_declared
        and not timeline.hides_frames,
        took=took,
    )


def _has_index_in_front(source: Path) -> bool:
    """Look whether the index of an MP4 comes before its pictures, so that playing can begin before all is there."""
    boxes = [kind for kind, _ in _top_level_boxes(source)]
    if b"moov" not in boxes or b"moof" in boxes:
        return False
    return b"mdat" not in boxes or boxes.index(b"moov") < boxes.index(b"mdat")


def _top_level_boxes(source: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the kinds of the outermost boxes of an MP4 and where they end, in their order (ISO/IEC 14496-12, 4.2)."""
    with source.open("rb") as file:
        position = 0
        for _ in range(10_000):
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                return
            size, kind = struct.unpack(">I4s", header[:8])
            if size == 1 and len(header) == 16:
                size = struct.unpack(">Q", header[8:])[0]
            yield kind, position + size
            if size < 8:
                return
            position += size


# --- Look: shape, direction and colours as a person sees them ---------------------------------------------------------
@dataclass(frozen=True)
class Look:
    """The presentation of the frames in a player.

    width, height: pixels as they are shown, square, even. turns: the filters that put a frame upright.
    cube: what becomes of each colour, where it is not one of an ordinary screen.
    """

    width: int
    height: int
    turns: tuple[str, ...]
    cube: VideoFrame | None
    is_as_stored: bool


def look_of(stream: VideoStream, timeline: Timeline, limits: Limits) -> Look:
    first = timeline.first
    wide = first.width * (stream.sample_aspect_ratio or 1)
    shrink = min(1, limits.max_side / max(wide, first.height))
    width, height = round(wide * shrink) & ~1, round(first.height * shrink) & ~1
    _check_size(width, height, limits)
    turns = _turns(first)
    # BT.2020 of ordinary brightness, too: players that do not know it show it pale.
    is_wide = first.color_trc in (PQ, HLG) or BT2020 in (first.color_primaries, first.colorspace)
    cube = colour_cube(first, timeline.brightest) if is_wide else None
    as_stored = (width, height) == (first.width, first.height) and not turns and cube is None
    if "transpose" in turns:
        width, height = height, width
    return Look(width=width, height=height, turns=turns, cube=cube, is_as_stored=as_stored)


def _turns(frame: VideoFrame) -> tuple[str, ...]:
    """Return what the display matrix asks for, to the nearest quarter turn, mirrored or not.

    The matrix takes a stored point to x' = a·x + c·y, y' = b·x + d·y (ISO/IEC 14496-12, 6.2.2).
    """
    side_data = cast(Iterable[SideData], frame.side_data)
    matrices = [bytes(data) for data in side_data if data.type == SideDataType.DISPLAYMATRIX]
    if not matrices:
        return ()
    a, b, _, c, d, *_ = struct.unpack("=9i", matrices[0])
    is_transposed = abs(b) + abs(c) > abs(a) + abs(d)
    to_left, to_top = (c < 0, b < 0) if is_transposed else (a < 0, d < 0)
    asked = {"transpose": is_transposed, "hflip": to_left, "vflip": to_top}
    return tuple(name for name, is_asked in asked.items() if is_asked)


def renderer(
    found: Survey, width: int, height: int, pix_fmt: str, scaling: str
) -> Callable[[VideoFrame], VideoFrame]:
    """Return what makes of a decoded frame the picture that a person sees, in this size and format.

    scaling: options of FFmpeg's `scale` that say what the new numbers mean.
    """
    look, first = found.look, found.timeline.first
    graph, numbers = Graph(), count()
    graph.threads = 2
    source = last = graph.add(
        "buffer",
        video_size=f"{first.width}x{first.height}",
        pix_fmt=first.format.name,
        time_base="1/1000",
        colorspace=str(first.colorspace),
        range=str(first.color_range),
    )
    if "transpose" in look.turns:
        width, height = height, width
    steps = [("scale", f"{width}:{height}:{scaling}"), ("format", pix_fmt)]
    if look.cube is not None:
        matrix = ":in_color_matrix=bt2020" if first.colorspace == UNSPECIFIED else ""
        steps = [
            ("scale", f"{width}:{height}{matrix}"),
            ("format", "rgb48le"),
            ("haldclut", ""),
            ("scale", scaling),
            ("format", pix_fmt),
        ]
    # FFmpeg's transpose also turns by default.
    steps += [(name, "cclock_flip" if name == "transpose" else "") for name in look.turns]
    for name, options in [*steps, ("buffersink", "")]:
        step = graph.add(name, options or None)
        last.link_to(step)
        if name == "haldclut" and look.cube is not None:
            side = f"{look.cube.width}x{look.cube.height}"
            cube = graph.add("buffer", video_size=side, pix_fmt="rgb48le", time_base="1/1000")
            cube.link_to(step, 0, 1)
        last = step
    graph.configure()
    if look.cube is not None:
        cube.push(look.cube)
        cube.push(None)

    def render(frame: VideoFrame) -> VideoFrame:
        # A stream may change its size on the way; the first one is kept.
        fitted = frame.reformat(width=first.width, height=first.height, format=first.format.name)
        fitted.pts, fitted.time_base = next(numbers), Fraction(1, 1000)
        source.push(fitted)
        # Through the graph, which its filters do not keep alive.
        return graph.vpull()

    return render


# --- Colours ----------------------------------------------------------------------------------------------------------
def colour_cube(first: VideoFrame, brightest: float) -> VideoFrame:
    """Return a table from the colours of the source to those of an ordinary screen, as FFmpeg's haldclut reads it.

    Each channel's light is brought into the range of the screen; what the primaries of BT.709 cannot show is clipped.
    brightest: the highest number of any channel in the clip, from 0 to 1.
    """
    steps, side = CUBE_LEVEL**2, CUBE_LEVEL**3
    to_light = {PQ: _pq_to_light, HLG: _hlg_to_light}.get(first.color_trc, _sdr_to_light)
    tone = _tone_curve(to_light(brightest))
    lights = [tone(to_light(step / (steps - 1))) / SDR_WHITE for step in range(steps)]
    to_bt709 = {BT709: SAME_PRIMARIES, P3: P3_TO_BT709}.get(first.color_primaries, BT2020_TO_BT709)
    numbers = array("H")
    for blue, green, red in product(lights, repeat=3):
        for x, y, z in to_bt709:
            shown = min(1.0, max(0.0, x * red + y * green + z * blue))
            numbers.append(round(65535 * shown ** (1 / SDR_GAMMA)))
    cube = VideoFrame(side, side, "rgb48le")
    plane, row = cube.planes[0], side * 6
    data = numbers.tobytes()
    plane.update(
        b"".join(data[at : at + row].ljust(plane.line_size, b"\0") for at in range(0, len(data), row))
    )
    cube.pts, cube.time_base = 0, Fraction(1, 1000)
    return cube


def _tone_curve(peak: float) -> Callable[[float], float]:
    """Return the curve that brings light up to `peak` below SDR_WHITE (ITU-R BT.2390, 5.4.1); the dark stays.

    Light is in candela a square metre.
    """
    if peak <= SDR_WHITE:
        return lambda light: light
    top = _light_to_pq(peak)
    white = _light_to_pq(SDR_WHITE) / top
    knee = 1.5 * white - 0.5

    def tone(light: float) -> float:
        number = min(1.0, _light_to_pq(light) / top)
        if number <= knee:
            return light
        t = (number - knee) / (1 - knee)
        bent = (
            (2 * t**3 - 3 * t**2 + 1) * knee
            + (t**3 - 2 * t**2 + t) * (1 - knee)
            + (3 * t**2 - 2 * t**3) * white
        )
        return _pq_to_light(bent * top)

    return tone


def _pq_to_light(number: float) -> float:
    """The curve of SMPTE ST 2084."""
    power = math.pow(number, 1 / PQ_M2)
    return 10_000 * math.pow(max(0.0, power - PQ_C1) / (PQ_C2 - PQ_C3 * power), 1 / PQ_M1)


def _light_to_pq(light: float) -> float:
    power = math.pow(light / 10_000, PQ_M1)
    return math.pow((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power), PQ_M2)


def _hlg_to_light(number: float) -> float:
    """The light of the scene (ARIB STD-B67), with the contrast that a screen adds to it (ITU-R BT.2100, table 5)."""
    scene = (
        number**2 / 3 if number <= 0.5 else (math.exp((number - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return HLG_PEAK * math.pow(scene, 1.2)


def _sdr_to_light(number: float) -> float:
    """The curve of ITU-R BT.1886."""
    return SDR_WHITE * math.pow(number, SDR_GAMMA)


# --- Sound ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sound:
    """The sound of a clip. rate: samples a second that new sound gets. fits: it can be copied."""

    rate: int
    fits: bool


class SoundReader:
    """The sound from the first picture to the end of the last: stereo, in a rate that AAC has, gaps filled.

    rate: samples a second, known with the first piece. losses: packets that do not decode, left out as in players.
    hidden: packets that an edit list hides. end: of the last packet, in seconds from the first picture.
    """

    def __init__(self, container: InputContainer, stream: AudioStream, timeline: Timeline) -> None:
        self._container, self._stream, self._timeline = container, stream, timeline
        self.rate = self.losses = self.hidden = 0
        self.end = 0.0

    def __iter__(self) -> Iterator[AudioFrame]:
        graph: Graph | None = None
        for frame, moment in self._frames():
            if graph is None:
                graph = self._graph(frame)
            # Of what begins before the first picture, the filter takes what is after it.
            frame.pts, frame.time_base = round(moment * frame.sample_rate), Fraction(1, frame.sample_rate)
            graph.push(frame)
            yield from _pieces(graph)
        if graph is not None:
            graph.push(None)
            yield from _pieces(graph)

    def _frames(self) -> Iterator[tuple[AudioFrame, float]]:
        """Yield what is heard while there are pictures, and when, in seconds from the first picture."""
        after = 0.0
        for packet in self._container.demux(self._stream):
            self._note(packet)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                self.losses += 1
                continue
            for frame in frames:
                moment = after if frame.time is None else frame.time - float(self._timeline.start)
                after = moment + frame.samples / frame.sample_rate
                if after > 0 and moment < self._timeline.seconds:
                    yield frame, moment

    def _note(self, packet: Packet[AudioStream]) -> None:
        self.hidden += packet.is_discard
        if packet.pts is not None and not packet.is_discard:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base - self._timeline.start
            self.end = max(self.end, float(end))

    def _graph(self, first: AudioFrame) -> Graph:
        wanted = min(first.sample_rate, HIGHEST_RATE)
        self.rate = next(rate for rate in AAC_RATES if rate >= wanted)
        graph = Graph()
        steps = [
            graph.add_abuffer(
                sample_rate=first.sample_rate,
                format=first.format,
                layout=first.layout,
                time_base=Fraction(1, first.sample_rate),
            ),
            graph.add("aresample", f"{self.rate}:async=1:first_pts=0"),
            graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
            graph.add("atrim", f"end_sample={round(self._timeline.seconds * self.rate)}"),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*steps).configure()
        graph.set_audio_frame_size(AAC_FRAME)
        return graph


def _pieces(graph: Graph) -> Iterator[AudioFrame]:
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield cast(AudioFrame, graph.pull())


def listen(source: Path, timeline: Timeline) -> Sound | None:
    """Decode the sound once, as a conversion would; None where there is nothing to keep: the pictures do without."""
    with opened(source) as container:
        stream = audio_stream(container)
        if stream is None:
            return None
        reader = SoundReader(container, stream, timeline)
        try:
            if not sum(piece.samples for piece in reader):
                return None
        except (av.error.FFmpegError, ValueError, OverflowError, ZeroDivisionError):
            return None
        return Sound(
            rate=reader.rate,
            fits=stream.codec_context.codec.canonical_name == "aac"
            and stream.rate in AAC_RATES
            and not reader.losses
            and reader.hidden <= AAC_PRIMING
            and timeline.start == 0
            and reader.end <= timeline.seconds + SLACK_SECONDS,
        )


# --- Conversion -------------------------------------------------------------------------------------------------------
def convert(source: Path, destination: Path, found: Survey, limits: Limits) -> None:
    """Write an MP4 with its index in front; frames that fit are copied, others become H.264 High yuv420p."""
    with (
        opened(source) as container,
        opened(source) as again,
        decoding_errors(),
        av.open(str(destination), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        video, audio = video_stream(container), audio_stream(again)
        video.codec_context.thread_count = limits.threads
        start = found.timeline.start
        tracks = [
            _copied(out, container, video, start)
            if found.codec_fits
            else _as_h264(out, container, video, found, limits)
        ]
        if audio and found.sound:
            tracks.append(
                _copied(out, again, audio, start)
                if found.sound.fits
                else _as_aac(out, SoundReader(again, audio, found.timeline), found.sound.rate)
            )
        for packet in heapq.merge(*tracks, key=lambda packet: (packet.dts or 0) * packet.time_base):
            out.mux(packet)


def _copied(
    out: OutputContainer, container: InputContainer, source: VideoStream | AudioStream, start: Fraction
) -> Iterator[Packet[Any]]:
    stream = out.add_stream_from_template(source)

    def packets() -> Iterator[Packet[Any]]:
        for packet in container.demux(source):
            if packet.pts is not None and packet.dts is not None:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                yield packet

    return packets()


def _as_h264(
    out: OutputContainer, container: InputContainer, source: VideoStream, found: Survey, limits: Limits
) -> Iterator[Packet[Any]]:
    """Encode frames at their own times."""
    timeline, look = found.timeline, found.look
    options = {
        "preset": _preset(found.took),
        "crf": "18",
        "profile": "high",
        "threads": str(limits.threads),
    }
    # An MP4 says how long a sample lasts in the order of decoding: at a changing rate, it is made that of showing.
    options |= {"flags": "+frame_duration"} | ({} if timeline.is_steady else {"bf": "0"})
    video = out.add_stream("libx264", rate=timeline.rate, options=options)
    video.width, video.height, video.pix_fmt = look.width, look.height, "yuv420p"
    video.codec_context.time_base = timeline.tick
    _tag_colours(video, found)
    is_new = look.cube is not None or timeline.first.format.is_rgb
    matrix = "out_color_matrix=bt709:" if is_new else ""
    render = renderer(found, look.width, look.height, "yuv420p", f"{matrix}out_range=tv")

    def packets() -> Iterator[Packet[Any]]:
        times = pairwise(timeline.times)
        for packet in container.demux(source):
            for frame, (moment, after) in zip(decoded(packet), times, strict=False):
                picture = render(frame)
                picture.pts, picture.duration, picture.time_base = moment, after - moment, timeline.tick
                picture.pict_type = PictureType.NONE
                yield from video.encode(picture)
        yield from video.encode(None)

    return packets()


def _preset(took: float) -> str:
    """Choose how hard x264 tries by the seconds that the survey took: a long clip gets done on a slow machine, too."""
    return "medium" if took < 3 else "veryfast" if took < 10 else "ultrafast"


def _tag_colours(video: VideoStream, found: Survey) -> None:
    """Say which matrix the numbers are in, or players guess by the size of the picture."""
    context, frame = video.codec_context, found.timeline.first
    context.color_range = 1
    if found.look.cube is not None or frame.format.is_rgb:
        context.colorspace = context.color_primaries = context.color_trc = BT709
    else:
        context.colorspace, context.color_primaries = frame.colorspace, frame.color_primaries
        context.color_trc = frame.color_trc


def _as_aac(out: OutputContainer, sound: SoundReader, rate: int) -> Iterator[Packet[Any]]:
    audio = out.add_stream("aac", rate=rate)

    def packets() -> Iterator[Packet[Any]]:
        for piece in sound:
            yield from audio.encode(piece)
        yield from audio.encode(None)

    return packets()


# --- Poster -----------------------------------------------------------------------------------------------------------
def write_poster(found: Survey, destination: Path) -> None:
    """Write a JPEG of at most POSTER_SIDE pixels a side and about POSTER_BYTES."""
    look = found.look
    shrink = min(1.0, POSTER_SIDE / max(look.width, look.height))
    width, height = (max(2, round(side * shrink) & ~1) for side in (look.width, look.height))
    # JPEG is in BT.601 and of the full range, always (JFIF 1.02).
    scaling = "flags=area:out_color_matrix=bt601:out_range=pc"
    picture = renderer(found, width, height, "yuvj420p", scaling)(found.timeline.still)
    for quality in (3, 6, 12, 24):
        destination.write_bytes(_jpeg(picture, quality))
        if destination.stat().st_size <= POSTER_BYTES:
            return


def _jpeg(picture: VideoFrame, quality: int) -> bytes:
    """quality: the quantiser, 2 (best) to 31."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": str(quality), "qmax": str(quality)}
    picture.pts, picture.time_base = 0, Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


if __name__ == "__main__":
    main(*sys.argv[1:])
    # Skip the interpreter's tear-down: everything is written, and decoders may crash when they are taken apart.
    sys.stdout.flush()
    os._exit(0)
