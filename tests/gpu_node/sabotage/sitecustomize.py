"""What only broken hardware does, done to the worker process of a node whose path begins with this folder.

A file of a fault's name in the folder that SABOTAGE_DIR names makes it happen; most happen once and take the file away.
"""

import errno
import os
import sys
import time
from pathlib import Path

if "gpu_node.worker" in sys.orig_argv:
    import torch

    from gpu_node import encoding, pipes
    from gpu_node.engine.pipeline import VideoPipeline

    FOLDER = Path(os.environ["SABOTAGE_DIR"])

    def happens(fault):
        try:
            (FOLDER / fault).unlink()
        except FileNotFoundError:
            return False
        return True

    read_commands, inboxes = pipes.Inbox._read, []

    def known_read(self):
        inboxes.append(self)
        read_commands(self)

    denoise, decode, write_mp4 = VideoPipeline._denoise, VideoPipeline.decode, encoding.write_mp4

    def faulty_denoise(self, job, prompts, on_step, picture):
        def step(number):
            on_step(number)
            if number == 2 and happens("out_of_memory_while_denoising"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            if number == 2 and happens("cuda_error"):
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if number == 3 and happens("cancel_in_this_step"):
                while not inboxes[0]._canceled:
                    time.sleep(0.01)

        latents = denoise(self, job, prompts, step, picture)
        return latents * torch.nan if happens("not_a_number") else latents

    def faulty_decode(self, latents, *, tiled=False):
        (FOLDER / "decoded").touch()
        if tiled:
            (FOLDER / "error_still_known").write_text(str(sys.exc_info()[0]))
        for number, frames in enumerate(decode(self, latents, tiled=tiled)):
            if number == 1 and happens("out_of_memory_while_decoding"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.")
            yield frames

    def faulty_write(*, frames, fps, path):
        if happens("disk_full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while (FOLDER / "hold_the_file").exists():
            time.sleep(0.01)
        write_mp4(frames=frames, fps=fps, path=path)

    pipes.Inbox._read = known_read
    VideoPipeline._denoise, VideoPipeline.decode, encoding.write_mp4 = (
        faulty_denoise,
        faulty_decode,
        faulty_write,
    )
