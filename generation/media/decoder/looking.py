"""Look at a clip: every frame of it is decoded, once."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .limits import Limits, Unplayable, decoding_errors
from .timeline import Timeline

SMALLEST_SIDE = 16
# What every browser, Telegram and iOS play; High 10 and 4:4:4 are H.264 too, and play almost nowhere.
PLAYABLE_PROFILES = frozenset({"Constrained Baseline", "Baseline", "Main", "High"})


@dataclass
class Survey:
    """What one pass over every frame found."""

    facts: dict[str, Any]
    container_fits: bool
    codec_fits: bool
    rate: Fraction
    still: VideoFrame

    @property
    def playable(self) -> bool:
        return self.container_fits and self.codec_fits


def survey(source: Path, limits: Limits) -> Survey:
    """Decode every frame once. Raises Unplayable for anything a person could not watch."""
    with opened(source) as container, decoding_errors():
        stream = video_stream(container)
        _check_shape(stream.codec_context.width, stream.codec_context.height, limits)
        stream.codec_context.thread_count = limits.threads
        timeline = Timeline(limits, float(stream.average_rate or 0))
        for frame in _frames(container, stream):
            timeline.add(frame)
        timeline.finish()
        return _described(source, container, stream, timeline)


def _described(source: Path, container: InputContainer, stream: VideoStream, timeline: Timeline) -> Survey:
    first = timeline.first
    order = list(_top_level_boxes(source))
    faststart = b"moov" in order and b"moof" not in order and order.index(b"moov") < _index(order, b"mdat")
    facts = {
        "codec": stream.codec_context.codec.canonical_name,
        "pix_fmt": first.format.name,
        "width": first.width,
        "height": first.height,
        "frames": timeline.count,
        "fps": round(float(timeline.rate), 3),
        "duration_ms": round(timeline.seconds * 1000),
        "size_bytes": source.stat().st_size,
        "faststart": faststart,
    }
    sounds_fit = all(sound.codec_context.codec.canonical_name == "aac" for sound in sounds(container))
    is_mov = "mov" in container.format.name
    is_mp4 = is_mov and container.metadata.get("major_brand", "").strip() != "qt"
    return Survey(
        facts=facts,
        container_fits=is_mp4 and faststart and sounds_fit and len(container.streams.video) == 1,
        # Matroska leaves out the decoding times that MP4 needs, so its frames are never copied.
        codec_fits=is_mov and _codec_fits(stream, facts),
        rate=timeline.rate,
        still=timeline.still,
    )


def _codec_fits(stream: VideoStream, facts: dict[str, Any]) -> bool:
    return (
        facts["codec"] == "h264"
        and facts["pix_fmt"] == "yuv420p"
        and stream.codec_context.profile in PLAYABLE_PROFILES
        and facts["width"] % 2 == 0
        and facts["height"] % 2 == 0
    )


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


def video_stream(container: InputContainer) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise Unplayable("it has no video in it")
    # Without a decoder PyAV has no context to offer.
    if streams[0].codec_context is None:
        raise Unplayable("its codec is not known")
    return streams[0]


def sounds(container: InputContainer) -> list[AudioStream]:
    """The audio there is a decoder for; other audio is left out rather than failing the pictures."""
    return [sound for sound in container.streams.audio if sound.codec_context is not None]


def _check_shape(width: int, height: int, limits: Limits) -> None:
    if not (SMALLEST_SIDE <= width <= limits.max_side and SMALLEST_SIDE <= height <= limits.max_side):
        raise Unplayable(f"its size of {width}x{height} pixels is out of bounds")


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame of a stream; raises Unplayable when the file has less than its index promises."""
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


def _top_level_boxes(source: Path) -> Iterator[bytes]:
    """The kinds of the outermost boxes of an MP4, in their order (ISO/IEC 14496-12, 4.2)."""
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


def _index(order: list[bytes], kind: bytes) -> int:
    return order.index(kind) if kind in order else len(order)
