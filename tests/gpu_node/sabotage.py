"""`python -m tests.gpu_node.sabotage OPTIONS`: a node's worker to which happens what only broken hardware does.

A file of a fault's name in the folder that SABOTAGE_DIR names makes it happen; most happen once and take the file away.
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gpu_node import ipc, video, worker
from gpu_node.engine.pipeline import VideoPipeline

FOLDER = Path(os.environ["SABOTAGE_DIR"])

read_commands = ipc.Inbox._read
denoise, decode, write_mp4 = VideoPipeline._denoise, VideoPipeline.decode, video.write_mp4
inboxes: list[ipc.Inbox] = []


def happens(fault: str) -> bool:
    try:
        (FOLDER / fault).unlink()
    except FileNotFoundError:
        return False
    return True


def known_read(self: ipc.Inbox) -> None:
    inboxes.append(self)
    read_commands(self)


def faulty_denoise(
    self: VideoPipeline, clip: Any, prompts: Any, on_step: Callable[[int], None], picture: Any
) -> torch.Tensor:
    canceled_before = set(inboxes[0]._canceled)

    def step(number: int) -> None:
        on_step(number)
        if number == 2 and happens("out_of_memory_while_denoising"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if number == 2 and happens("cuda_error"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if number == 3 and happens("cancel_in_this_step"):
            while inboxes[0]._canceled <= canceled_before:
                time.sleep(0.01)

    latents = denoise(self, clip, prompts, step, picture)
    return latents * torch.nan if happens("not_a_number") else latents


def faulty_decode(self: VideoPipeline, latents: torch.Tensor, *, tiled: bool = False) -> Iterator[Any]:
    (FOLDER / "decoded").touch()
    if tiled:
        (FOLDER / "error_still_known").write_text(str(sys.exc_info()[0]))
    for number, frames in enumerate(decode(self, latents, tiled=tiled)):
        if number == 1 and happens("out_of_memory_while_decoding"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.")
        yield frames


def faulty_write(*, frames: Any, fps: int, path: Path) -> None:
    if happens("disk_full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    while (FOLDER / "hold_the_file").exists():
        time.sleep(0.01)
    write_mp4(frames=frames, fps=fps, path=path)


if __name__ == "__main__":
    ipc.Inbox._read = known_read  # type: ignore[method-assign]
    VideoPipeline._denoise = faulty_denoise  # type: ignore[method-assign]
    VideoPipeline.decode = faulty_decode  # type: ignore[method-assign]
    video.write_mp4 = faulty_write
    sys.exit(worker.main())
