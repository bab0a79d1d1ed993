"""`python -m benchmarks.demo_model`: how well a model draws what it is asked for, beside the bars.

It makes clips of combinations that training never saw, and the scorer says what they show. With --contact-sheet
FILE.jpg the first twelve of those clips become a picture instead, none left out.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.demo_scorer import look
from gpu_node.demo_model import latents
from gpu_node.demo_model.architecture import TRAINED
from gpu_node.demo_model.renderer import FRAMES, HEIGHT, WIDTH, draw, scenes
from gpu_node.demo_model.vocabulary import MAX_TOKENS, Combination, combinations, held_out_combinations
from gpu_node.engine.vae import flatten_small_convolutions

ATTRIBUTES = ("colour", "background", "motion", "shape")
ALL, CLIPS = "all four", "clips"
MISTAKE = " seen as "
BARS = {"colour": 0.98, "background": 0.98, "motion": 0.95, "shape": 0.90, ALL: 0.85}
PSNR_BAR, SECONDS_BAR = 30.0, 4.0
STEPS = 20
GUIDANCE = 1.75  # what the node uses for it
FIRST_SEED = 1000
RECONSTRUCTED = 20  # clips
PART = 10  # clips that a process makes at a time

SHEET_CLIPS, SHEET_COLUMNS = 12, 2
SHEET_FRAMES = 5  # of each clip, evenly spread
CAPTION, GAP = 18, 8  # pixels


def judge(wanted: Combination, clip: Tensor) -> Counter[str]:
    """Count in one clip, (3, frames, 96, 144), the ATTRIBUTES that it shows as it should, or ALL, and its mistakes."""
    seen, tally = look(clip), Counter({CLIPS: 1})
    for name in ATTRIBUTES:
        asked, shown = getattr(wanted, name), getattr(seen, name)
        tally[name if asked == shown else f"{asked}{MISTAKE}{shown}"] += 1
    tally[ALL] += all(tally[name] for name in ATTRIBUTES)
    return tally


def main() -> None:
    """Print the table, or write the contact sheet; the same weights give the same figures, times excepted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model")
    parser.add_argument(
        "--model", type=Path, default=TRAINED, help="a folder in the layout of save_pretrained"
    )
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip, 8N+1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.jpg", help="make this picture instead")
    options = parser.parse_args()
    if options.contact_sheet is not None:
        torch.set_num_threads(1)
        made = made_clips(load(options.model), prompts(SHEET_CLIPS), frames=options.frames)
        contact_sheet([(wanted.prompt, clip) for wanted, clip in made]).save(
            options.contact_sheet, quality=88
        )
        return
    real, tally = examine(
        options.model, count=options.prompts, frames=options.frames, processes=options.processes
    )
    torch.set_num_threads(1)  # as the node does: two threads on a busy machine wait for each other
    sys.stdout.write(table(real, tally) + "\n" + "\n".join(others(load(options.model), tally)) + "\n")


def examine(
    folder: Path, *, count: int, processes: int, frames: int = FRAMES
) -> tuple[Counter[str], Counter[str]]:
    """Score `count` real clips and as many made ones, shared out among processes."""
    parts = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
    real, made = Counter[str](), Counter[str]()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for one, other in pool.map(partial(_examine_part, folder, count=count, frames=frames), parts):
            real.update(one)
            made.update(other)
            sys.stderr.write(f"{made[CLIPS]} of {count}\n")
    return real, made


def _examine_part(folder: Path, part: range, *, count: int, frames: int) -> tuple[Counter[str], Counter[str]]:
    torch.set_num_threads(1)
    real, made = Counter[str](), Counter[str]()
    for wanted, clip in real_clips(len(part), seed=part.start, frames=frames):
        real.update(judge(wanted, clip))
    asked = prompts(count)[part.start : part.stop]
    first_seed = FIRST_SEED + part.start
    for wanted, clip in made_clips(load(folder), asked, first_seed=first_seed, frames=frames):
        made.update(judge(wanted, clip))
    return real, made


@cache
def load(folder: Path) -> CogVideoXPipeline:
    """Load the pipeline in float32, with the convolutions rearranged as the node does it on a CPU."""
    pipe = CogVideoXPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    flatten_small_convolutions(pipe.vae)
    return pipe


def prompts(count: int) -> list[Combination]:
    """Return the held-out combinations in turn, again from the start when they are used up."""
    order = torch.randperm(len(held_out_combinations()), generator=torch.Generator().manual_seed(0)).tolist()
    return [held_out_combinations()[index] for index in islice(cycle(order), count)]


def real_clips(count: int, *, seed: int = 99, frames: int = FRAMES) -> Iterator[tuple[Combination, Tensor]]:
    """Draw clips afresh, for examining the scorer itself."""
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randint(len(combinations()), (count,), generator=generator).tolist():
        wanted = combinations()[index]
        yield wanted, draw(scenes([wanted], generator, frames=frames))[0]


def made_clips(
    pipe: CogVideoXPipeline, wanted: list[Combination], *, first_seed: int = FIRST_SEED, frames: int = FRAMES
) -> Iterator[tuple[Combination, Tensor]]:
    """Make one clip of each combination, with seeds counted from `first_seed`."""
    for start in range(0, len(wanted), PART):
        some = wanted[start : start + PART]
        texts = [item.prompt for item in some]
        yield from zip(some, make(pipe, texts, first_seed=first_seed + start, frames=frames), strict=True)


@torch.no_grad()
def make(
    pipe: CogVideoXPipeline, texts: list[str], *, first_seed: int, frames: int = FRAMES
) -> Iterator[Tensor]:
    """Make clips for the texts: (3, frames, 96, 144) each, from 0 to 1. `frames`: 8N+1."""
    generators = [torch.Generator().manual_seed(first_seed + index) for index in range(len(texts))]
    found = pipe(
        prompt=texts,
        num_frames=frames,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generators,
        max_sequence_length=MAX_TOKENS,
        output_type="latent",
    ).frames
    for fields in found[:, -latents.length(frames) :]:
        yield _pixels(pipe, fields[None])


def _pixels(pipe: CogVideoXPipeline, fields: Tensor) -> Tensor:
    """(1, l, 16, 12, 18) → (3, t, 96, 144)."""
    decoded: Tensor = pipe.decode_latents(fields.to(pipe.vae.dtype))[0].float()
    return (decoded / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def reconstruction(pipe: CogVideoXPipeline, *, clips: int) -> tuple[float, float]:
    """Measure how near real clips of held-out combinations come back, in dB; the mean over the clips.

    First through the whole VAE, from pixels to latents to pixels; then by the decoder alone, from the latents drawn.
    """
    generator = torch.Generator().manual_seed(98)
    both, decoder = 0.0, 0.0
    for wanted in prompts(clips):
        scene = scenes([wanted], generator)
        clip = draw(scene)
        encoded = pipe.vae.encode(clip * 2 - 1).latent_dist.mode()
        both += _psnr(clip[0], pipe.vae.decode(encoded).sample[0] / 2 + 0.5)
        decoder += _psnr(clip[0], _pixels(pipe, latents.draw_latents(scene)))
    return both / clips, decoder / clips


def _psnr(clip: Tensor, other: Tensor) -> float:
    return -10 * (clip - other.clamp(0, 1)).square().mean().log10().item()


def seconds_a_clip(pipe: CogVideoXPipeline) -> float:
    """Time one clip from prompt to pixels, after one that warms up."""
    for _ in range(2):
        began = time.perf_counter()
        next(make(pipe, ["a red ball moving right on a white background"], first_seed=0))
    return time.perf_counter() - began


def table(real: Counter[str], made: Counter[str]) -> str:
    """Return the shares as a table in Markdown."""
    lines = [f"| | {real[CLIPS]} real clips | {made[CLIPS]} held-out prompts | bar |", "|---|---|---|---|"]
    for name in (*ATTRIBUTES, ALL):
        share = made[name] / made[CLIPS]
        shares = f"{real[name] / real[CLIPS]:.1%} | {share:.1%}"
        lines.append(f"| {name} | {shares} | {BARS[name]:.0%}{_verdict(share >= BARS[name])} |")
    return "\n".join(lines)


def others(pipe: CogVideoXPipeline, made: Counter[str]) -> list[str]:
    """Return the lines that belong below the table."""
    seconds = seconds_a_clip(pipe)
    both, decoder = reconstruction(pipe, clips=RECONSTRUCTED)
    mistakes = [f"{what} {count}×" for what, count in made.most_common() if MISTAKE in what][:8]
    return [
        f"real clips through the VAE: {both:.1f} dB (bar {PSNR_BAR:.0f}{_verdict(both >= PSNR_BAR)}); "
        f"by the decoder from their drawn latents: {decoder:.1f} dB",
        f"a clip of 17 frames, 20 steps: {seconds:.1f} s (bar {SECONDS_BAR:.0f}{_verdict(seconds <= SECONDS_BAR)})",
        f"most frequent mistakes: {', '.join(mistakes) or 'none'}",
    ]


def _verdict(held: bool) -> str:
    return "" if held else ", missed"


def contact_sheet(made: list[tuple[str, Tensor]]) -> Image.Image:
    """Draw one strip a clip, with its prompt above it."""
    width, height = WIDTH * SHEET_FRAMES, HEIGHT + CAPTION
    rows = -(-len(made) // SHEET_COLUMNS)
    page = Image.new("RGB", (SHEET_COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, (prompt, clip) in enumerate(made):
        row, column = divmod(index, SHEET_COLUMNS)
        left, top = column * (width + GAP), row * (height + GAP)
        ImageDraw.Draw(page).text((left + 2, top + 3), prompt, fill="black")
        for place in range(SHEET_FRAMES):
            frame = clip[:, place * (clip.shape[1] - 1) // (SHEET_FRAMES - 1)].permute(1, 2, 0)
            picture = Image.fromarray((frame * 255).round().byte().numpy())
            page.paste(picture, (left + place * WIDTH, top + CAPTION))
    return page


if __name__ == "__main__":
    main()
