"""`python -m gpu_node.tiny.score`: how well the shipped weights draw what they are asked for, beside the bars."""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline

from gpu_node.engine.convolutions import flatten_small_convolutions
from gpu_node.tiny.examination import (
    ATTRIBUTES,
    FIRST_SEED,
    Tally,
    made_clips,
    prompts,
    real_clips,
    reconstruction,
    seconds_a_clip,
)
from gpu_node.tiny.folder import TRAINED
from gpu_node.tiny.renderer import FRAMES

BARS = {"colour": 0.98, "background": 0.98, "motion": 0.95, "shape": 0.90, "all four": 0.85}
PSNR_BAR, SECONDS_BAR = 30.0, 4.0
RECONSTRUCTED = 20  # clips
PART = 10  # clips that a process makes at a time


def main() -> None:
    """Print the table; the same weights and count give the same figures, times excepted."""
    parser = argparse.ArgumentParser(prog="python -m gpu_node.tiny.score")
    parser.add_argument(
        "--model", type=Path, default=TRAINED, help="a folder in the layout of save_pretrained"
    )
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip, 8N+1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    real, made = examine(
        options.model, count=options.prompts, frames=options.frames, processes=options.processes
    )
    torch.set_num_threads(1)  # as the node does: two threads on a busy machine wait for each other
    sys.stdout.write(table(real, made) + "\n" + "\n".join(others(load(options.model), made)) + "\n")


def examine(folder: Path, *, count: int, processes: int, frames: int = FRAMES) -> tuple[Tally, Tally]:
    """What the scorer sees in `count` real clips and in as many made ones, shared out among processes."""
    parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    real, made = Tally(), Tally()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for one, other in pool.map(partial(_examine_part, folder, count=count, frames=frames), parts):
            real.add(one)
            made.add(other)
            sys.stderr.write(f"{made.clips} of {count}\n")
    return real, made


def _examine_part(folder: Path, part: range, *, count: int, frames: int) -> tuple[Tally, Tally]:
    torch.set_num_threads(1)
    real, made = Tally(), Tally()
    for wanted, clip in real_clips(len(part), seed=part.start, frames=frames):
        real.count(wanted, clip)
    asked = prompts(count)[part.start : part.stop]
    first_seed = FIRST_SEED + part.start
    for wanted, clip in made_clips(_kept_pipeline(folder), asked, first_seed=first_seed, frames=frames):
        made.count(wanted, clip)
    return real, made


@cache
def _kept_pipeline(folder: Path) -> CogVideoXPipeline:
    return load(folder)


def load(folder: Path) -> CogVideoXPipeline:
    """The pipeline in float32, with the convolutions rearranged as the node does it on a CPU."""
    pipe = CogVideoXPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    flatten_small_convolutions(pipe.vae)
    return pipe


def table(real: Tally, made: Tally) -> str:
    """As Markdown."""
    lines = [f"| | {real.clips} real clips | {made.clips} held-out prompts | bar |", "|---|---|---|---|"]
    for name in (*ATTRIBUTES, "all four"):
        shares = f"{real.share(name):.1%} | {made.share(name):.1%}"
        lines.append(f"| {name} | {shares} | {BARS[name]:.0%}{_verdict(made.share(name) >= BARS[name])} |")
    return "\n".join(lines)


def others(pipe: CogVideoXPipeline, made: Tally) -> list[str]:
    """What belongs below the table."""
    seconds = seconds_a_clip(pipe)
    both, decoder = reconstruction(pipe, clips=RECONSTRUCTED)
    missed = ", ".join(f"{what} {count}×" for what, count in made.missed.most_common(8)) or "none"
    return [
        f"real clips through the VAE: {both:.1f} dB (bar {PSNR_BAR:.0f}{_verdict(both >= PSNR_BAR)}); "
        f"by the decoder from their drawn latents: {decoder:.1f} dB",
        f"a clip of 17 frames, 20 steps: {seconds:.1f} s (bar {SECONDS_BAR:.0f}{_verdict(seconds <= SECONDS_BAR)})",
        f"most frequent mistakes: {missed}",
    ]


def _verdict(held: bool) -> str:
    return "" if held else ", missed"


if __name__ == "__main__":
    main()
