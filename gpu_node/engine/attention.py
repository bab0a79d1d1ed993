"""The kernel that computes the attention: measured at start-up, because the fastest differs from card to card.

diffusers' `set_attention_backend` does nothing for CogVideoX (huggingface/diffusers#13622): its own processor calls
PyTorch's attention directly. The processor here goes through diffusers' dispatcher, or to FlashAttention 3 of the
package fa3-fwd, which diffusers does not know.
"""

import importlib
import logging
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias, get_args

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb

from gpu_node.catalog import LOSSY_ATTENTION, AttentionBackend
from gpu_node.engine.errors import ModelUnavailable, poisons_process
from gpu_node.engine.quantization import FP8, FP8_LARGEST, SMALLEST_SCALE

log = logging.getLogger(__name__)

# Of query, key and value, each (batch, tokens, heads, width of a head).
Kernel: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
STOCK = "native"
# All compute the same attention, and differ by rounding only. `flash` and `flash_3` need their packages.
EXACT = tuple(name for name in get_args(AttentionBackend) if name not in ("auto", *LOSSY_ATTENTION))
# Relative, of the whole result: bfloat16 alone gives about 0.005, 8 bits some hundredths, a fault more than that.
ROUNDING, LOSSY_ROUNDING = 0.02, 0.15
ROUNDS = 5


class DispatchedAttention:
    """CogVideoX's joint attention of text and video by one of diffusers' attention backends."""

    def __init__(self, backend: str) -> None:
        self._kernel = kernel(backend)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, video tokens, width), (batch, text tokens, width) → the same shapes. There never is a mask."""
        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        # (batch, tokens, heads, width of a head)
        query = attn.norm_q(attn.to_q(tokens).unflatten(2, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(tokens).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(tokens).unflatten(2, (attn.heads, -1))
        if image_rotary_emb is not None:
            query, key = (_rotated(states, image_rotary_emb, text) for states in (query, key))
        out = self._kernel(query, key, value)
        out = attn.to_out[0](out.flatten(2).to(query.dtype))
        return out[:, text:], out[:, :text]


def _rotated(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], text: int) -> torch.Tensor:
    """Rotate the tokens of the video: only they have a place in space and time."""
    video = apply_rotary_emb(states[:, text:], rotary, sequence_dim=1)
    return torch.cat([states[:, :text], video], dim=1)


def kernel(name: str) -> Kernel:
    """Return the function of a backend. ImportError when its package is missing."""
    if not name.startswith("flash_3"):
        return partial(dispatch_attention_fn, backend=AttentionBackendName(name))
    flash_3: Kernel = importlib.import_module("fa3_fwd_interface").flash_attn_func
    return partial(_in_8_bits, flash_3) if name == "flash_3_fp8" else flash_3


def _in_8_bits(flash_3: Callable[..., torch.Tensor], *states: torch.Tensor) -> torch.Tensor:
    """Attend with queries, keys and values in 8-bit floats, each head with a scale of its own."""
    scales = [each.abs().amax(dim=(1, 3)).float().clamp_min(SMALLEST_SCALE) / FP8_LARGEST for each in states]
    small = [(each / scale[:, None, :, None]).to(FP8) for each, scale in zip(states, scales, strict=True)]
    return flash_3(*small, q_descale=scales[0], k_descale=scales[1], v_descale=scales[2]).to(states[0].dtype)


def check_backend(name: str, *, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ModelUnavailable for a backend that does not run here: the operator named it."""
    query, key, value = _random((1, 256, 4, 64), dtype, device)
    if (reason := _why_not(name, query, key, value, kernel(STOCK)(query, key, value))) is not None:
        raise ModelUnavailable(f"GPU_NODE_ATTENTION: {name} cannot be used here: {reason}")


def fastest_backend(
    candidates: Iterable[str], *, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """Return the candidate that takes the least time for attention of this shape (batch, tokens, heads, width).

    One that does not run here, or whose result is not that of PyTorch's own, is left out.
    """
    query, key, value = _random(shape, dtype, device)
    expected = kernel(STOCK)(query, key, value)
    times: dict[str, float] = {}
    for name in (STOCK, *candidates):
        if (reason := _why_not(name, query, key, value, expected)) is not None:
            log.info("attention: %s is left out: %s", name, reason)
        elif name not in times:
            times[name] = _seconds(partial(kernel(name), query, key, value), device)
    log.info("attention: %s", ", ".join(f"{name} {took * 1000:.2f} ms" for name, took in times.items()))
    return min(times, key=times.__getitem__)


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def _why_not(
    name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, expected: torch.Tensor
) -> str | None:
    """Return why this backend cannot be used; None when it computes what PyTorch's own does."""
    try:
        out = kernel(name)(query, key, value)
        distance = float((out - expected).float().norm() / expected.float().norm())
    except Exception as error:  # a package is missing, a card is too old: each kernel says it in its own way
        if poisons_process(error):
            raise
        return str(error).partition("\n")[0][:200]
    allowed = LOSSY_ROUNDING if name in LOSSY_ATTENTION else ROUNDING
    return None if distance <= allowed else f"its result differs by {distance:.3f}"


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median of some rounds, after one that warms up."""
    times = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
