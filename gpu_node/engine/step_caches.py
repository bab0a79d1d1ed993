"""Step caches: parts of a denoising step are taken from the step before. Lossy, and so only in the profile `fast`."""

from collections.abc import Callable
from typing import Any

from diffusers import (
    CogVideoXPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)

from gpu_node.engine import compiling
from gpu_node.engine.errors import ModelUnavailable

# The ranges of time are those that diffusers' documentation gives for CogVideoX.
SKIPPED_TIMES = (100, 800)
RESIDUAL_DIFFERENCE = (
    0.08  # of the first block, between two steps, below which the other blocks are not computed
)


def enable_step_cache(pipe: CogVideoXPipeline, name: str) -> None:
    """Turn one on: faster_cache, pab, first_block or cache_dit. After compiling, so that its hooks stay outside."""
    _CACHES[name](pipe)


def compiled_parts(name: str) -> tuple[str, ...]:
    """What may be compiled beneath this cache: whole blocks, unless its hooks sit inside them."""
    return compiling.PARTS if name in ("faster_cache", "pab") else compiling.BLOCKS


def _time_of(pipe: CogVideoXPipeline) -> Callable[[], int]:
    return lambda: int(pipe._current_timestep)


def _faster_cache(pipe: CogVideoXPipeline) -> None:
    """Attention every second step, the unconditional half every fifth. https://arxiv.org/abs/2410.19355."""
    pipe.transformer.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 681),
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=(-1, 641),
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BFCHW",
            current_timestep_callback=_time_of(pipe),
        )
    )


def _pyramid_attention_broadcast(pipe: CogVideoXPipeline) -> None:
    """Attention every second step. https://arxiv.org/abs/2408.12588."""
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=SKIPPED_TIMES,
            current_timestep_callback=_time_of(pipe),
        )
    )


def _first_block(pipe: CogVideoXPipeline) -> None:
    """All blocks but the first are left out while the first hardly changes."""
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=RESIDUAL_DIFFERENCE))


def _cache_dit(pipe: CogVideoXPipeline) -> None:
    """The dual block cache of cache-dit, with its own defaults. https://github.com/vipshop/cache-dit."""
    try:
        import cache_dit  # an extra: nothing else needs it
    except ImportError as error:
        raise ModelUnavailable("GPU_NODE_STEP_CACHE=cache_dit needs the package cache-dit.") from error
    blocks = len(pipe.transformer.transformer_blocks)
    config: Any = cache_dit.DBCacheConfig(Fn_compute_blocks=min(8, blocks // 2))
    cache_dit.enable_cache(pipe, cache_config=config)


_CACHES: dict[str, Callable[[CogVideoXPipeline], None]] = {
    "faster_cache": _faster_cache,
    "pab": _pyramid_attention_broadcast,
    "first_block": _first_block,
    "cache_dit": _cache_dit,
}
STEP_CACHES = tuple(_CACHES)
