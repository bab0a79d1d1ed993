"""Real clips for tests, written by PyAV."""

from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy

from generation import media


def facts_of(clip: Path) -> media.VideoFacts:
    """Check that a clip plays everywhere as it is, and return its facts."""
    with TemporaryDirectory() as folder:
        playable = Path(folder) / "playable.mp4"
        facts = media.prepare(clip, playable, Path(folder) / "poster.jpg")
        assert playable.read_bytes() == clip.read_bytes(), "it had to be converted"
    return facts


def write_clip(
    path: Path, *, frames: int = 16, fps: int = 8, width: int = 96, height: int = 64, codec: str = "libx264"
) -> Path:
    """An MP4 of a bright bar that moves to the right: H.264 yuv420p with its index in front unless told otherwise."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = numpy.full((height, width, 3), 40, dtype=numpy.uint8)
            left = number * (width - 8) // max(1, frames - 1)
            picture[:, left : left + 8] = (220, 80, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


# Of a clip as `media.prepare` gives them, for tests that need no file.
FACTS = media.VideoFacts(
    codec="h264",
    pix_fmt="yuv420p",
    width=96,
    height=64,
    frames=16,
    fps=8.0,
    duration_ms=2000,
    size_bytes=4000,
    faststart=True,
)
FILES = ("videos/a.mp4", "posters/a.jpg")
