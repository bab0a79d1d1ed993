"""Optimisation: a run that may be stopped at any moment, the optimiser Muon, and the precision."""

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpu_node.settings import LOG_FORMAT

log = logging.getLogger(__name__)

SAVE_EVERY = 60.0  # seconds
LOG_EVERY = 15.0
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon's published Newton–Schulz iteration


class Average:
    """A moving average of a model's weights, which draws better than the weights themselves."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._sources = list(model.state_dict(keep_vars=True).items())
        self.weights = {name: value.detach().clone() for name, value in self._sources}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in; the early ones, which are poor, are soon forgotten."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        floats = [(self.weights[name], value) for name, value in self._sources if value.is_floating_point()]
        torch._foreach_lerp_([kept for kept, _ in floats], [value.data for _, value in floats], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"weights": self.weights, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        self._updates = state["updates"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


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
    average: Average
    steps: int = 0
    samples: int = 0
    spent: float = 0.0
    last_loss: float = math.inf
    rates: list[float] = field(default_factory=list)
    constant: float = 0.45
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
        """True when the time is up."""
        return self.spent >= self.seconds

    def step(self, loss: Tensor, *, samples: int) -> None:
        """Descend by the loss's gradient, and write down from time to time how far it is."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        warm, falling = min(1.0, (self.steps + 1) / 100), (1 - self.progress) / (1 - self.constant)
        share = warm * max(0.01, min(1.0, falling))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()
        self.average.update()
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
            "average": self.average.state_dict(),
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
        self.average.load_state_dict(state["average"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.steps, self.samples, self.spent = state["steps"], state["samples"], state["spent"]
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


class Muon(Optimizer):
    """Muon (Keller Jordan, 2024): momentum whose matrix is brought near to an orthogonal one before it is applied.

    For matrices, and for kernels taken as matrices of one row an output channel.

    Those of one shape are handled as one batch: torch's own takes them one by one, slowly.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, iterations: int = 4
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for batch in shapes.values():
                self._update(batch, group)

    def _update(self, batch: list[Tensor], group: dict[str, float]) -> None:
        directions = [self._direction(parameter, group["momentum"]) for parameter in batch]
        matrices = torch.stack(directions).flatten(2)
        steps = orthogonal(matrices, int(group["iterations"])).view(-1, *batch[0].shape)
        rows, columns = matrices.shape[1:]
        size = group["lr"] * max(1, rows / columns) ** 0.5
        for parameter, step in zip(batch, steps, strict=True):
            parameter.add_(step, alpha=-size)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1: (n, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


def autocast(device: str) -> AbstractContextManager[object]:
    """Run the forward pass in bfloat16 on GPUs, and on CPUs with instructions for it.

    On a CPU without, it takes three times as long as float32.
    """
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bfloat16)
