"""Turning frames into a file beside the GPU's work: one thread a clip."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_node.video import write_mp4

Frames = NDArray[np.uint8]


class Abandoned(Exception):
    """The clip is not wanted any more; its file is removed."""


class ClipEncoder(threading.Thread):
    """Writes one clip while the GPU goes on with the next.

    Frames, shape (count, height, width, 3), come by `add`; `finish` or `abandon` ends it. `on_end` is called in this
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
        """All frames are there; the end is told by `on_end`."""
        self._arrived.put(None)

    def abandon(self) -> None:
        """Leave no file, and tell nobody. Returns when the thread has ended."""
        self._arrived.put(Abandoned())
        self.join()

    def run(self) -> None:
        """The thread."""
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
