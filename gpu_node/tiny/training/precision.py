"""Which precision a device trains fastest in."""

import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor

WIDTH, ROWS = 256, 4096
TRIES = 5


def autocast(device: str) -> AbstractContextManager[object]:
    """Around the forward pass: bfloat16 where that is faster, which it is on GPUs and on CPUs with instructions for it.

    On a CPU without, it takes three times as long as float32.
    """
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or _bfloat16_is_faster())


def _bfloat16_is_faster() -> bool:
    """Measured, because PyTorch has no public way to ask."""
    matrices = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH)
    seconds = {
        dtype: _seconds(*(each.to(dtype) for each in matrices)) for dtype in (torch.bfloat16, torch.float32)
    }
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _seconds(one: Tensor, other: Tensor) -> float:
    """The best of some tries: other work on the machine makes the rest longer."""
    tries = []
    for _ in range(TRIES):
        began = time.perf_counter()
        one @ other
        tries.append(time.perf_counter() - began)
    return min(tries)
