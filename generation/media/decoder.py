"""The program that opens clips: sandbox.py starts it for one file, under limits, and it is gone when it is done.

A clip comes from a machine that is not trusted, and decoders crash. So this runs apart from the worker, imports neither
Django nor any other module of the project, sees no environment, and answers with one line of JSON on stdout:
{"facts": {…}}, {"unplayable": "why"} or {"failed": "what went wrong on our side"}.

    python decoder.py LIMITS_JSON SOURCE VIDEO POSTER

VIDEO becomes an MP4 that plays everywhere: H.264, yuv420p, even sides, index in front. POSTER becomes a JPEG.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias, cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

SMALLEST_SIDE = 16
POSTER_SIDE = 1280
POSTER_BYTES = 300_000
# Luma that differs by less than this all over a frame is a blank frame: a fade-in, not a poster.
BLANK_SPREAD = 16
# What every browser, Telegram and iOS play; High 10 and 4:4:4 are H.264 too, and play almost nowhere.
PLAYABLE_PROFILES = frozenset({"Constrained Baseline", "Baseline", "Main", "High"})
# Errors of FFmpeg that say nothing of the file: the disk, or a limit of ours.
OUR_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EACCES, errno.EROFS})
TOO_MUCH_MEMORY = "it needs more memory than is allowed"
# A limit of `confine` was met: the file is at fault, not the disk.
OUTGROWN = {errno.ENOMEM: TOO_MUCH_MEMORY, errno.EFBIG: "it grows larger than is allowed"}

# One stream of the new file: takes the packets of the source, then None for the end.
Track: TypeAlias = "Callable[[Packet[Any] | None], None]"


class Unplayable(Exception):
    """The file is not a video that can be shown; the text says why."""


@dataclass(frozen=True)
class Limits:
    """The limits of one clip.

    seconds: wall clock. max_side: pixels. max_duration: seconds of video. memory, max_bytes: bytes.
    """

    seconds: float
    max_side: int = 4096
    max_duration: float = 600.0
    max_frames: int = 36_000
    memory: int = 4 * 1024**3
    max_bytes: int = 2 * 1024**3
    threads: int = 2


@dataclass
class Survey:
    """The result of one pass over every frame."""

    facts: dict[str, Any]
    timeline: Timeline
    container_fits: bool
    codec_fits: bool


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
        resource.RLIMIT_CPU: int(limits.seconds * limits.threads) + 2,
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_FSIZE: limits.max_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for kind, ceiling in ceilings.items():
        # macOS refuses RLIMIT_AS; the other limits still hold there.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (ceiling, ceiling))


def prepare(source: Path, video: Path, poster: Path, *, limits: Limits) -> dict[str, Any]:
    """Check the clip, write its poster, and write a video that plays everywhere. Returns the facts of that video.

    A source that plays everywhere is copied byte by byte.
    """
    found = survey(source, limits)
    write_poster(found.timeline.still, poster)
    if found.container_fits and found.codec_fits:
        shutil.copyfile(source, video)
        return found.facts
    convert(source, video, found, limits)
    return survey(video, limits).facts


# --- Survey: every frame is decoded once ------------------------------------------------------------------------------
def survey(source: Path, limits: Limits) -> Survey:
    """Decode every frame once. Raises Unplayable for anything a person could not watch."""
    with opened(source) as container, decoding_errors():
        stream = video_stream(container)
        width, height = stream.codec_context.width, stream.codec_context.height
        if not (min(width, height) >= SMALLEST_SIDE and max(width, height) <= limits.max_side):
            raise Unplayable(f"its size of {width}x{height} pixels is out of bounds")
        stream.codec_context.thread_count = limits.threads
        timeline = Timeline(limits, float(stream.average_rate or 0))
        for frame in _frames(container, stream):
            timeline.add(frame)
        return _described(source, container, stream, timeline.finished())


@contextlib.contextmanager
def opened(source: Path) -> Iterator[InputContainer]:
    """Open by the format its first bytes name: guessing would also try playlists, which open other files."""
    with source.open("rb") as file:
        head = file.read(12)
    if not head:
        raise Unplayable("the file is empty")
    kind = "mov" if head[4:8] == b"ftyp" else "matroska" if head[:4] == b"\x1aE\xdf\xa3" else None
    if kind is None:
        raise Unplayable("it is neither MP4 nor WebM")
    try:
        container = av.open(str(source), "r", format=kind, options={"protocol_whitelist": "file"})
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


def video_stream(container: InputContainer) -> VideoStream:
    """Return the first video that is no cover picture."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise Unplayable("it has no video in it")
    # Without a decoder PyAV has no context to offer.
    if streams[0].codec_context is None:
        raise Unplayable("its codec is not known")
    return streams[0]


def audio_streams(container: InputContainer) -> list[AudioStream]:
    """Return the audio there is a decoder for; other audio is left out rather than failing the pictures."""
    return [audio for audio in container.streams.audio if audio.codec_context is not None]


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield every frame of a stream; raises Unplayable when the file has less than its index promises."""
    packets = 0
    for packet in container.demux(stream):
        packets += packet.size > 0
        if packet.is_corrupt:
            raise Unplayable("it is cut short")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise Unplayable("it is damaged")
            yield frame
    if packets < stream.frames:
        raise Unplayable(f"it is cut short: {packets} of {stream.frames} frames are there")


class Timeline:
    """The times of a clip's frames, their number, and the frame that makes the poster."""

    def __init__(self, limits: Limits, declared_rate: float) -> None:
        self._limits = limits
        self._declared_rate = declared_rate
        self._start = self._end = self._last = 0.0
        self._still_is_blank = True
        self.count = 0
        self.first: VideoFrame
        self.still: VideoFrame

    @property
    def seconds(self) -> float:
        return self._end - self._start

    @property
    def rate(self) -> Fraction:
        """Frames a second as they are timed, not as the header says."""
        span = self._last - self._start
        measured = (self.count - 1) / span if span > 0 else self._declared_rate or 1.0
        return Fraction(measured).limit_denominator(1001)

    def add(self, frame: VideoFrame) -> None:
        """Count the next frame. Raises Unplayable when its size is another, or the clip too long."""
        moment = frame.time if frame.time is not None else self._end
        if self.count == 0:
            self.first = self.still = frame
            self._start = moment
        elif (frame.width, frame.height) != (self.first.width, self.first.height):
            raise Unplayable("its size changes on the way")
        length = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / (self._declared_rate or 25.0)
        self.count += 1
        self._last, self._end = max(self._last, moment), max(self._end, moment + length)
        if self.seconds > self._limits.max_duration or self.count > self._limits.max_frames:
            raise Unplayable(f"it is longer than {self._limits.max_duration:g} s")
        # The poster: the last frame of the first half second, or the first after it that is not blank.
        if (moment - self._start <= 0.5 or self._still_is_blank) and not _is_blank(frame):
            self.still, self._still_is_blank = frame, False

    def finished(self) -> Timeline:
        """Return the whole timeline. Raises Unplayable when it has fewer than two frames."""
        if self.count < 2:
            raise Unplayable("it is a single picture" if self.count else "it has no frames")
        return self


def _is_blank(frame: VideoFrame) -> bool:
    """Check that the first plane (luma, mostly) is the same all over; each row ends in padding, which is left out."""
    plane = frame.planes[0]
    rows = memoryview(plane)
    step = plane.line_size * max(1, plane.height // 64)
    sample = b"".join(bytes(rows[start : start + plane.width : 7]) for start in range(0, len(rows), step))
    return max(sample) - min(sample) < BLANK_SPREAD


def _described(source: Path, container: InputContainer, stream: VideoStream, timeline: Timeline) -> Survey:
    first, codec = timeline.first, stream.codec_context
    faststart = _has_index_in_front(source)
    is_mov = "mov" in container.format.name
    is_mp4 = is_mov and container.metadata.get("major_brand", "").strip() != "qt"
    audio_fits = all(audio.codec_context.codec.canonical_name == "aac" for audio in audio_streams(container))
    facts = {
        "codec": codec.codec.canonical_name,
        "pix_fmt": first.format.name,
        "width": first.width,
        "height": first.height,
        "frames": timeline.count,
        "fps": round(float(timeline.rate), 3),
        "duration_ms": round(timeline.seconds * 1000),
        "size_bytes": source.stat().st_size,
        "faststart": faststart,
    }
    return Survey(
        facts=facts,
        timeline=timeline,
        container_fits=is_mp4 and faststart and audio_fits and len(container.streams.video) == 1,
        # Matroska leaves out the decoding times that MP4 needs, so its frames are never copied.
        codec_fits=is_mov
        and facts["codec"] == "h264"
        and facts["pix_fmt"] == "yuv420p"
        and codec.profile in PLAYABLE_PROFILES
        and first.width % 2 == first.height % 2 == 0,
    )


def _has_index_in_front(source: Path) -> bool:
    """Look whether the index of an MP4 comes before its pictures, so that playing can begin before all is there."""
    boxes = list(_top_level_boxes(source))
    if b"moov" not in boxes or b"moof" in boxes:
        return False
    return b"mdat" not in boxes or boxes.index(b"moov") < boxes.index(b"mdat")


def _top_level_boxes(source: Path) -> Iterator[bytes]:
    """Yield the kinds of the outermost boxes of an MP4, in their order (ISO/IEC 14496-12, 4.2)."""
    with source.open("rb") as file:
        position = 0
        for _ in range(10_000):
            file.seek(position)
            header = file.read(16)
            if len(header) < 8:
                return
            size, kind = struct.unpack(">I4s", header[:8])
            yield kind
            if size == 1 and len(header) == 16:
                size = struct.unpack(">Q", header[8:])[0]
            if size < 8:
                return
            position += size


# --- Conversion -------------------------------------------------------------------------------------------------------
def convert(source: Path, destination: Path, found: Survey, limits: Limits) -> None:
    """Write an MP4 with its index in front; frames that fit are copied, others become H.264 High yuv420p."""
    with (
        opened(source) as container,
        decoding_errors(),
        av.open(str(destination), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        video = video_stream(container)
        video.codec_context.thread_count = limits.threads
        tracks = {
            video.index: _copied(out, video) if found.codec_fits else _as_h264(out, video, found, limits)
        }
        for audio in audio_streams(container)[:1]:
            is_aac = audio.codec_context.codec.canonical_name == "aac"
            tracks[audio.index] = _copied(out, audio) if is_aac else _as_aac(out, audio)
        for packet in container.demux([container.streams[index] for index in tracks]):
            tracks[packet.stream_index](packet)
        for track in tracks.values():
            track(None)


def _copied(out: OutputContainer, source: VideoStream | AudioStream) -> Track:
    stream = out.add_stream_from_template(source)

    def take(packet: Packet[Any] | None) -> None:
        if packet is not None and packet.dts is not None:
            packet.stream = stream
            out.mux(packet)

    return take


def _as_h264(out: OutputContainer, source: VideoStream, found: Survey, limits: Limits) -> Track:
    """Encode frames at their own times."""
    options = {"preset": "medium", "crf": "18", "profile": "high", "threads": str(limits.threads)}
    rate = found.timeline.rate
    video = out.add_stream("libx264", rate=rate, options=options)
    video.width, video.height = found.facts["width"] & ~1, found.facts["height"] & ~1
    video.pix_fmt = "yuv420p"
    video.codec_context.time_base = source.time_base or 1 / rate
    _tag_colours(video, found.timeline.still)

    def take(packet: Packet[Any] | None) -> None:
        if packet is None:
            out.mux(video.encode(None))
            return
        for frame in packet.decode():
            fitted = frame.reformat(
                width=video.width,
                height=video.height,
                format="yuv420p",
                dst_colorspace="ITU709" if frame.format.is_rgb else None,
                dst_color_range="MPEG",
            )
            fitted.pict_type = PictureType.NONE
            out.mux(video.encode(fitted))

    return take


def _tag_colours(video: VideoStream, frame: VideoFrame) -> None:
    """Say which matrix the numbers are in, or players guess by the size of the picture."""
    bt709 = 1
    context = video.codec_context
    if frame.format.is_rgb:
        context.colorspace = context.color_primaries = context.color_trc = bt709
    else:
        context.colorspace, context.color_primaries = frame.colorspace, frame.color_primaries
        context.color_trc = frame.color_trc


def _as_aac(out: OutputContainer, source: AudioStream) -> Track:
    rate = min(source.rate or 48_000, 48_000)
    audio = out.add_stream("aac", rate=rate)
    resampler = AudioResampler(format="fltp", layout="stereo", rate=rate, frame_size=1024)

    def take(packet: Packet[Any] | None) -> None:
        frames = cast(list[AudioFrame | None], [None] if packet is None else packet.decode())
        for frame in frames:
            for piece in resampler.resample(frame):
                out.mux(audio.encode(piece))
        if packet is None:
            out.mux(audio.encode(None))

    return take


# --- Poster -----------------------------------------------------------------------------------------------------------
def write_poster(frame: VideoFrame, destination: Path) -> None:
    """Write a JPEG of at most POSTER_SIDE pixels a side and about POSTER_BYTES."""
    shrink = min(1.0, POSTER_SIDE / max(frame.width, frame.height))
    width, height = (max(2, round(side * shrink) & ~1) for side in (frame.width, frame.height))
    picture = frame.reformat(width=width, height=height, format="yuvj420p", interpolation="AREA")
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
