"""Muon (Keller Jordan, 2024): momentum whose matrix is brought near to an orthogonal one before it is applied."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the published Newton–Schulz iteration


class Muon(Optimizer):
    """For matrices, and for kernels taken as matrices of one row an output channel.

    Those of one shape are handled as one batch: torch's own takes them one by one, slowly.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, iterations: int = 4
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for batch in _by_shape(group["params"]):
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
    """Matrices with the same singular vectors and singular values near 1: (n, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            shapes[parameter.shape].append(parameter)
    return list(shapes.values())
