"""MP4 files from pixels: H.264 High, yuv420p, faststart, which browsers, phones and Telegram all play."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # (count, height, width, 3), RGB

# Without x264's macroblock tree: its assembly reads memory that was never set where a row is not a multiple of 8
# macroblocks, so that the same pictures gave different files (3 kinds in 12 runs at 64×32; one kind without it).
ENCODER_OPTIONS = {"profile": "high", "preset": "medium", "crf": "18", "x264-params": "mbtree=0"}


def write_mp4(*, frames: Iterable[Frames], fps: int, path: Path) -> None:
    """Write pieces of a clip, each of shape (count, height, width, 3), RGB, at `fps` frames a second, to `path`.

    Each piece is encoded as soon as it is there. The file appears whole or not at all. Width and height must be even
    (yuv420p halves both). Raises OSError when the disk is full, ValueError for a shape that is no video.
    """
    part = path.with_name(path.name + ".part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: VideoStream | None = None
            for piece in frames:
                if piece.ndim != 4 or piece.shape[3] != 3 or not piece.shape[0] or piece.dtype != np.uint8:
                    raise ValueError(
                        f"expected uint8 frames of shape (count, height, width, 3), got {piece.shape}"
                    )
                if piece.shape[1] % 2 or piece.shape[2] % 2:
                    raise ValueError(f"width and height must be even, got {piece.shape[2]}x{piece.shape[1]}")
                if stream is None:
                    stream = container.add_stream("libx264", rate=Fraction(fps), options=ENCODER_OPTIONS)
                    stream.height, stream.width = piece.shape[1:3]
                    stream.pix_fmt = "yuv420p"
                for pixels in piece:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if stream is None:
                raise ValueError("expected frames, got none")
            container.mux(stream.encode())
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class Abandoned(Exception):
    """The clip is not wanted any more; its file is removed."""


class ClipEncoder(threading.Thread):
    """Writer of one clip while the GPU goes on with the next.

    Frames come by `add`; `finish` or `abandon` ends it. `on_end` is called in this
    thread with None once the file is there, or with what went wrong.
    """

    def __init__(self, *, path: Path, fps: int, on_end: Callable[[Exception | None], None]) -> None:
        super().__init__(name=f"encoder-{path.stem}")
        self._path = path
        self._fps = fps
        self._on_end = on_end
        self._arrived: queue.SimpleQueue[Frames | Exception | None] = queue.SimpleQueue()
        self.start()

    def add(self, frames: Frames) -> None:
        """Take the next frames; returns at once."""
        self._arrived.put(frames)

    def finish(self) -> None:
        """Take no more frames: all are there."""
        self._arrived.put(None)

    def abandon(self) -> None:
        """Leave no file, and call nothing. Returns when the thread has ended."""
        self._arrived.put(Abandoned())
        self.join()

    def run(self) -> None:
        try:
            write_mp4(frames=self._frames(), fps=self._fps, path=self._path)
        except Abandoned:
            return
        except Exception as error:
            self._on_end(error)
        else:
            self._on_end(None)

    def _frames(self) -> Iterator[Frames]:
        while (item := self._arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
