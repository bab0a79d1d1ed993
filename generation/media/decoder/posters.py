"""The still picture that stands for a clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
from av.video.frame import VideoFrame

POSTER_SIDE = 1280
POSTER_BYTES = 300_000


def write_poster(frame: VideoFrame, destination: Path) -> None:
    """A JPEG of at most POSTER_SIDE pixels a side and about POSTER_BYTES."""
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
