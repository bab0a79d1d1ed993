"""The kernel that computes the attention: measured at start-up, because the fastest differs from card to card.

diffusers' `set_attention_backend` does nothing for CogVideoX (huggingface/diffusers#13622): its own processor calls
PyTorch's attention directly. The processor here goes through diffusers' dispatcher.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb

from gpu_node.engine.errors import ModelUnavailable, poisons_process

log = logging.getLogger(__name__)

STOCK = "native"
# All compute the same attention, and differ by rounding only. `flash` and `_flash_3` need their packages.
EXACT = (STOCK, "_native_cudnn", "_native_flash", "flash", "_flash_3")
ROUNDING = 0.02  # relative, of the whole result: bfloat16 alone gives about 0.005, 8-bit attention above this
ROUNDS = 5


class DispatchedAttention:
    """CogVideoX's joint attention of text and video by one of diffusers' attention backends."""

    def __init__(self, backend: str) -> None:
        self._backend = AttentionBackendName(backend)

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
        out = dispatch_attention_fn(query, key, value, backend=self._backend)
        out = attn.to_out[0](out.flatten(2).to(query.dtype))
        return out[:, text:], out[:, :text]


def _rotated(states: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], text: int) -> torch.Tensor:
    """Rotate the tokens of the video: only they have a place in space and time."""
    video = apply_rotary_emb(states[:, text:], rotary, sequence_dim=1)
    return torch.cat([states[:, :text], video], dim=1)


def use_backend(transformer: CogVideoXTransformer3DModel, backend: str) -> None:
    """Compute all attention of the transformer by this backend. Raises ModelUnavailable for an unknown one."""
    if backend not in {known.value for known in AttentionBackendName}:
        raise ModelUnavailable(f"GPU_NODE_ATTENTION: diffusers has no attention backend {backend!r}.")
    transformer.set_attn_processor(DispatchedAttention(backend))


def fastest_backend(
    candidates: Iterable[str], *, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """Return the candidate that takes the least time for attention of this shape (batch, tokens, heads, width).

    One that does not run here, or whose result is not that of PyTorch's own, is left out.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    expected = _attend(query, key, value, STOCK)
    times = {STOCK: _seconds(lambda: _attend(query, key, value, STOCK), device)}
    for name in candidates:
        if name != STOCK and _agrees(name, query, key, value, expected):
            times[name] = _seconds(lambda backend=name: _attend(query, key, value, backend), device)  # type: ignore[misc]
    log.info("attention: %s", ", ".join(f"{name} {took * 1000:.2f} ms" for name, took in times.items()))
    return min(times, key=times.__getitem__)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    out: torch.Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
    return out


def _agrees(
    name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, expected: torch.Tensor
) -> bool:
    try:
        out = _attend(query, key, value, name)
        distance = float((out - expected).float().norm() / expected.float().norm())
    except Exception as error:  # a package is missing, a card is too old: each kernel says it in its own way
        if poisons_process(error):
            raise
        log.info("attention: %s does not run here: %s", name, str(error).partition("\n")[0][:200])
        return False
    if distance > ROUNDING:
        log.warning("attention: %s differs by %.3f and is left out", name, distance)
    return distance <= ROUNDING


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
