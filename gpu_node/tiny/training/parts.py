"""The three parts that are trained, side by side or one alone, each in a process of its own."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gpu_node.settings import LOG_FORMAT
from gpu_node.tiny.training import transformer, vae
from gpu_node.tiny.training.run import Run

PARTS: dict[str, Callable[..., Run]] = {
    "transformer": transformer.train,
    "decoder": partial(vae.train, "decoder"),
    "encoder": partial(vae.train, "encoder"),
}


def train(part: str, *, folder: Path, minutes: float, threads: int, start: Path | None) -> None:
    """What the process of one part does: train it until its time is up, out of the way of all other work."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    os.nice(5)
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    PARTS[part](folder=folder, seconds=minutes * 60, device=device, start=start)
