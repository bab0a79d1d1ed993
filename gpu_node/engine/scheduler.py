"""The 5B's noise schedule, without making the GPU wait for the CPU at each step."""

from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXTransformer3DModel


class DPMScheduler(CogVideoXDPMScheduler):
    """CogVideoXDPMScheduler, bit by bit, with its noise drawn on the CPU while the GPU is still at the model.

    The original looks its coefficients up with a time on the GPU, which waits for the GPU, and only then draws the
    noise: for 49 frames two times 1.1 million numbers, at each step, with the GPU idle. Here times and coefficients
    stay on the CPU, and the noise follows without waiting. (The pipeline's time embedding then needs its times
    brought over: `times_to`.)
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As in the base class; `device` is not used."""
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

        original = self._original(model_output, sample, alpha)
        h, r, *_rest = self.get_variables(alpha, alpha_before, alpha_back)
        factors = self.get_mult(h, r, alpha, alpha_before, alpha_back)
        noise_factor = (1 - alpha_before) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        target = original if is_first_order else factors[2] * original - factors[3] * old_pred_original_sample
        return factors[0] * sample - factors[1] * target + noise_factor * noise, original

    def _original(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: torch.Tensor
    ) -> torch.Tensor:
        """The published models predict a velocity, the demonstration model the clean sample itself."""
        if self.config.prediction_type == "sample":
            return model_output
        assert self.config.prediction_type == "v_prediction", self.config.prediction_type
        original: torch.Tensor = alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
        return original


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
