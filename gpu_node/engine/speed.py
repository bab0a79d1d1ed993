"""Levers that make a clip faster: compiled blocks, a step cache, and a scheduler without waits.

Only the step cache is lossy, and so it belongs to the profile `fast` alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FasterCacheConfig,
)

log = logging.getLogger(__name__)

BLOCKS = ("CogVideoXBlock",)
# Beneath the step cache, whose hooks sit on the attention inside a block.
PARTS = ("Attention", "FeedForward", "CogVideoXLayerNormZero")
MOST_SHAPES = 64  # graphs that Dynamo keeps of one function; its own limit is 8


def compile_forward(
    transformer: CogVideoXTransformer3DModel, *, names: tuple[str, ...] = BLOCKS, backend: str = "inductor"
) -> None:
    """Compile the modules of these class names at their first call, anew for every shape.

    `compile_repeated_blocks` of diffusers 0.42 raises for CogVideoX, which does not name its blocks; and it compiles
    the whole call of a block, with whatever hooks of a step cache lie around it. Here only the forward method is
    compiled, so that hooks added later stay outside. All blocks share one compiled graph for each shape.
    """
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * MOST_SHAPES
    found = [module for module in transformer.transformer_blocks.modules() if type(module).__name__ in names]
    assert found, f"no module is one of {names}"
    for module in found:
        # Not `fullgraph`: where an attention kernel cannot be traced, the rest is compiled all the same.
        module.forward = torch.compile(module.forward, dynamic=False, backend=backend)
    log.info("%d of the transformer's modules are compiled at their first use", len(found))


@contextmanager
def new_shapes_compile() -> Iterator[None]:
    """Within, a shape that was not seen before is compiled, which takes minutes; outside, it runs as it is."""
    torch.compiler.set_stance("default")
    try:
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")


def enable_faster_cache(pipe: CogVideoXPipeline) -> None:
    """Compute attention every second step, the unconditional half every fifth. https://arxiv.org/abs/2410.19355.

    Call it after compiling, so that its hooks stay outside. The times are those of diffusers' documentation.
    """
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, 641),
        attention_weight_callback=lambda _: 0.3,
        tensor_format="BFCHW",
        current_timestep_callback=lambda: int(pipe._current_timestep),
    )
    pipe.transformer.enable_cache(config)


class DPMScheduler(CogVideoXDPMScheduler):
    """CogVideoXDPMScheduler, bit by bit, with its noise drawn on the CPU while the GPU is still at the model.

    The original looks its coefficients up with a time on the GPU, which waits for the GPU, and only then draws the
    noise: for 49 frames two times 1.1 million numbers, at each step, with the GPU idle. Here times and coefficients
    stay on the CPU, and the noise follows without waiting. (The pipeline's time embedding then needs its times
    brought over: `times_to`.)
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the times as the base class does, on the CPU; `device` is not used."""
        super().set_timesteps(num_inference_steps, device="cpu")

    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: torch.Tensor,
        timestep_back: torch.Tensor | None,
        sample: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(the sample one step earlier, the predicted original); shapes as `sample`."""
        before = timestep - self.config.num_train_timesteps // self.num_inference_steps
        alpha = self.alphas_cumprod[timestep]
        alpha_before = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        alpha_back = None if timestep_back is None else self.alphas_cumprod[timestep_back]
        is_first_order = old_pred_original_sample is None or before < 0
        noise = _noise(sample, generator)
        if not is_first_order:
            noise = _noise(sample, generator)  # the base class draws, and leaves, another before this one

        # The demonstration model predicts the clean sample itself.
        if self.config.prediction_type == "sample":
            original = model_output
        else:
            assert self.config.prediction_type == "v_prediction", self.config.prediction_type
            original = alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
        h, r, *_rest = self.get_variables(alpha, alpha_before, alpha_back)
        factors = self.get_mult(h, r, alpha, alpha_before, alpha_back)
        noise_factor = (1 - alpha_before) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        target = original if is_first_order else factors[2] * original - factors[3] * old_pred_original_sample
        return factors[0] * sample - factors[1] * target + noise_factor * noise, original


def _noise(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if like.device.type == "cuda":
        noise = noise.pin_memory()
    return noise.to(like.device, non_blocking=True)


def times_to(transformer: CogVideoXTransformer3DModel, device: torch.device) -> None:
    """Let the transformer take its times from the CPU."""

    def bring(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].to(device, non_blocking=True), *inputs[1:])

    transformer.time_proj.register_forward_pre_hook(bring)
