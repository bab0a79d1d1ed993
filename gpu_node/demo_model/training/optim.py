"""Optimisation: a run that may be stopped at any moment, its optimisers and its precision."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from gpu_node.settings import LOG_FORMAT

log = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...] | list[Tensor]
SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 15.0
CONSTANT_PART = 0.45  # of the time, before the learning rate falls


def moving_average(model: nn.Module, *, decay: float) -> AveragedModel:
    """Average the weights as they move, which draws better; the early ones, which are poor, are soon forgotten."""

    def forget(averaged: Tensors, present: Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averaged, present, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=torch.no_grad()(forget))


@dataclass
class Run:
    """A model in training, with its clock, learning rate and file.

    `seconds`: the time it may take in all, counted over every resumption.

    The learning rate is constant for the first part and then falls to a hundredth at the end of that time, so a slower
    machine trains less but always to a finished model.
    """

    file: Path
    seconds: float
    model: nn.Module
    optimisers: list[Optimizer]
    average: AveragedModel
    steps: int = 0
    samples: int = 0
    spent: float = 0.0
    last_loss: float = math.inf
    rates: list[float] = field(init=False)
    _ticked: float = field(default_factory=time.monotonic)
    _saved: float = 0.0
    _logged: float = 0.0
    _losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        if self.file.is_file():
            self._load()

    @property
    def progress(self) -> float:
        """The part of the time that is spent, from 0 to 1."""
        return min(1.0, self.spent / self.seconds)

    @property
    def finished(self) -> bool:
        return self.spent >= self.seconds

    def step(self, loss: Tensor, *, samples: int) -> None:
        """Descend by the loss's gradient, and write down from time to time how far it is."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        warm, falling = min(1.0, (self.steps + 1) / 100), (1 - self.progress) / (1 - CONSTANT_PART)
        share = warm * max(0.01, min(1.0, falling))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
        self.model.zero_grad()
        self.average.update_parameters(self.model)
        self.steps, self.samples = self.steps + 1, self.samples + samples
        self._losses.append(loss.detach())
        now = time.monotonic()
        self.spent, self._ticked = self.spent + now - self._ticked, now
        if self.spent - self._logged > LOG_EVERY or self.finished:
            self._log()
        if self.spent - self._saved > SAVE_EVERY or self.finished:
            self.save()

    def _log(self) -> None:
        self.last_loss = loss = torch.stack(self._losses).mean().item()
        self._losses, self._logged = [], self.spent
        line = {
            "seconds": round(self.spent),
            "steps": self.steps,
            "samples": self.samples,
            "loss": round(loss, 5),
        }
        log.info("%s", line)
        with self.file.with_suffix(".jsonl").open("a") as curve:
            curve.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write everything that going on needs; a stop meanwhile leaves the last file whole."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "steps": self.steps,
            "samples": self.samples,
            "spent": self.spent,
        }
        scratch = self.file.with_suffix(".new")
        torch.save(state, scratch)
        scratch.replace(self.file)
        self._saved = self.spent

    def _load(self) -> None:
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.steps, self.samples, self.spent = state["steps"], state["samples"], state["spent"]
        self.average.n_averaged.fill_(self.steps)
        self._saved = self._logged = self.spent
        log.info("going on after %d samples", self.samples)


def train_part(
    train: Callable[..., Run], *, folder: Path, minutes: float, threads: int, start: Path | None
) -> None:
    """Train one part, in a process of its own, until its time is up; out of the way of all other work."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    os.nice(5)
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train(folder=folder, seconds=minutes * 60, device=device, start=start)


def muon(parameters: list[nn.Parameter], *, lr: float) -> Optimizer:
    """Make torch's Muon for matrices, and for kernels taken as matrices of one row an output channel.

    It takes matrices only, so each kernel is given to it as a matrix in the same memory, gradient included.
    """
    matrices = [nn.Parameter(parameter.detach().flatten(1)) for parameter in parameters]
    for parameter, matrix in zip(parameters, matrices, strict=True):

        def share_gradient(changed: Tensor, matrix: nn.Parameter = matrix) -> None:
            assert changed.grad is not None
            matrix.grad = changed.grad.flatten(1)

        parameter.register_post_accumulate_grad_hook(share_gradient)  # type: ignore[no-untyped-call]
    return torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, ns_steps=4)


def autocast(device: str) -> AbstractContextManager[object]:
    """Run the forward pass in bfloat16 on GPUs, and on CPUs with instructions for it.

    On a CPU without, it takes three times as long as float32.
    """
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bfloat16)
