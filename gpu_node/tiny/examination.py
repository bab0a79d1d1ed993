"""Examines a model: makes clips of combinations that training never saw, and asks the scorer what they show."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice

import torch
from diffusers import CogVideoXPipeline
from torch import Tensor

from gpu_node.tiny import latents
from gpu_node.tiny.renderer import FRAMES, draw, scenes
from gpu_node.tiny.scorer import look
from gpu_node.tiny.vocabulary import MAX_TOKENS, Combination, combinations, held_out_combinations

ATTRIBUTES = ("colour", "background", "motion", "shape")
STEPS = 20
GUIDANCE = 1.75  # what the node uses for it
FIRST_SEED = 1000


@dataclass
class Tally:
    """How many clips showed what they should."""

    clips: int = 0
    right: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)

    def count(self, wanted: Combination, clip: Tensor) -> None:
        """Look at one clip: (3, frames, 96, 144)."""
        seen = look(clip)
        good = [name for name in ATTRIBUTES if getattr(seen, name) == getattr(wanted, name)]
        self.clips += 1
        self.right.update(good)
        self.right["all four"] += len(good) == len(ATTRIBUTES)
        for name in set(ATTRIBUTES) - set(good):
            self.missed[f"{getattr(wanted, name)} seen as {getattr(seen, name)}"] += 1

    def add(self, other: "Tally") -> None:
        """Take in what another process counted."""
        self.clips += other.clips
        self.right.update(other.right)
        self.missed.update(other.missed)

    def share(self, attribute: str) -> float:
        """From 0 to 1; `attribute` is one of ATTRIBUTES or "all four"."""
        return self.right[attribute] / self.clips


def prompts(count: int) -> list[Combination]:
    """The held-out combinations in turn, again from the start when they are used up."""
    order = torch.randperm(len(held_out_combinations()), generator=torch.Generator().manual_seed(0)).tolist()
    return [held_out_combinations()[index] for index in islice(cycle(order), count)]


def real_clips(count: int, *, seed: int = 99, frames: int = FRAMES) -> Iterator[tuple[Combination, Tensor]]:
    """Freshly drawn clips, for examining the scorer itself."""
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randint(len(combinations()), (count,), generator=generator).tolist():
        wanted = combinations()[index]
        yield wanted, draw(scenes([wanted], generator, frames=frames))[0]


def made_clips(
    pipe: CogVideoXPipeline,
    wanted: list[Combination],
    *,
    first_seed: int = FIRST_SEED,
    batch: int = 10,
    guidance: float = GUIDANCE,
    frames: int = FRAMES,
) -> Iterator[tuple[Combination, Tensor]]:
    """One clip of each combination, with seeds counted from `first_seed`."""
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        texts = [item.prompt for item in some]
        made = make(pipe, texts, first_seed=first_seed + start, guidance=guidance, frames=frames)
        yield from zip(some, made, strict=True)


@torch.no_grad()
def make(
    pipe: CogVideoXPipeline,
    texts: list[str],
    *,
    first_seed: int,
    guidance: float = GUIDANCE,
    frames: int = FRAMES,
) -> Iterator[Tensor]:
    """Clips for the texts: (3, frames, 96, 144) each, from 0 to 1. `frames`: 8N+1."""
    generators = [torch.Generator().manual_seed(first_seed + index) for index in range(len(texts))]
    found = pipe(
        prompt=texts,
        num_frames=frames,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=generators,
        max_sequence_length=MAX_TOKENS,
        output_type="latent",
    ).frames
    for fields in found[:, -latents.length(frames) :]:
        yield _pixels(pipe, fields[None])


@torch.no_grad()
def reconstruction(pipe: CogVideoXPipeline, *, clips: int) -> tuple[float, float]:
    """How near real clips of held-out combinations come back, in dB; the mean over the clips.

    First through the whole VAE, from pixels to latents to pixels; then by the decoder alone, from the latents drawn.
    """
    generator = torch.Generator().manual_seed(98)
    both, decoder = 0.0, 0.0
    for wanted in prompts(clips):
        scene = scenes([wanted], generator)
        clip = draw(scene)
        encoded = pipe.vae.encode(clip * 2 - 1).latent_dist.mode()
        both += _likeness(clip[0], pipe.vae.decode(encoded).sample[0] / 2 + 0.5)
        decoder += _likeness(clip[0], _pixels(pipe, latents.draw_latents(scene)))
    return both / clips, decoder / clips


def _likeness(clip: Tensor, other: Tensor) -> float:
    """The peak signal-to-noise ratio in dB."""
    return -10 * (clip - other.clamp(0, 1)).square().mean().log10().item()


def _pixels(pipe: CogVideoXPipeline, fields: Tensor) -> Tensor:
    """(1, l, 16, 12, 18) → (3, t, 96, 144)."""
    decoded: Tensor = pipe.decode_latents(fields.to(pipe.vae.dtype))[0].float()
    return (decoded / 2 + 0.5).clamp(0, 1)


def seconds_a_clip(pipe: CogVideoXPipeline) -> float:
    """Wall-clock time of one clip from prompt to pixels, after one that warms up."""
    for _ in range(2):
        began = time.perf_counter()
        next(make(pipe, ["a red ball moving right on a white background"], first_seed=0))
    return time.perf_counter() - began
