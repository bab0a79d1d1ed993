"""The diffusers pipeline, owned by one process and used by one job at a time."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from gpu_node import tiny
from gpu_node.settings import shown_name

log = logging.getLogger(__name__)

GIB = 2**30
TILE_BELOW = 36 * GIB  # a 5B peaks at 31.7 GB when its VAE decodes 49 frames of 720×480 in one piece
OFFLOAD_BELOW = 26 * GIB  # its weights alone are 19.8 GB


class ModelUnavailable(Exception):
    """The model can never be loaded as the node is set up; trying again is no use."""


class Canceled(Exception):
    """The job was canceled; raised out of the denoising loop to stop it at once."""


class UnusableResult(Exception):
    """The model produced values that are no picture."""


@dataclass(frozen=True, kw_only=True)
class GenerationInput:
    """What one clip is made from. Sizes in pixels, multiples of 16; frames 8N+1 (CogVideo README)."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    frames: int
    steps: int
    guidance_scale: float
    seed: int


class VideoPipeline:
    """A loaded CogVideoX. Not safe for two jobs at once: the scheduler keeps state between steps."""

    def __init__(self, pipe: CogVideoXPipeline, *, device: str, lower_case: bool) -> None:
        self._pipe = pipe
        self._scheduler_config = pipe.scheduler.config
        self._lower_case = lower_case
        self.device = device

    @classmethod
    def load(cls, *, model: str, device: str, cache_dir: Path) -> "VideoPipeline":
        """Load `tiny`, a hub id or a folder. `device`: auto, cuda or cpu.

        Raises ModelUnavailable where trying again is no use; OSError when a download or the disk fails.
        """
        place = _choose_device(model, device)
        _check_folder(model)
        _quiet_progress_bars()
        if place == "cpu":
            torch.set_num_threads(1 if model == "tiny" else torch.get_num_threads())
        source = tiny.model_folder(cache_dir) if model == "tiny" else model
        pipe = CogVideoXPipeline.from_pretrained(source, dtype=_dtype(place))
        pipe.set_progress_bar_config(disable=True)
        _place(pipe, place)
        return cls(pipe, device=_device_name(place), lower_case=model == "tiny")

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) in pixels that the model was made for."""
        config = self._pipe.transformer.config
        scale = self._pipe.vae_scale_factor_spatial
        return config.sample_width * scale, config.sample_height * scale

    @property
    def native_frames(self) -> int:
        """The number of frames that the model was made for."""
        return int(self._pipe.transformer.config.sample_frames)

    def denoise(self, job: GenerationInput, *, on_step: Callable[[int], None]) -> torch.Tensor:
        """Latents of shape (1, latent frames, channels, height/8, width/8), all finite.

        `on_step` is called with the number of steps done and may raise Canceled. The random numbers come from a
        CPU generator of this job's own, so the same input gives the same bits whatever ran before.
        """
        self._pipe.scheduler = CogVideoXDPMScheduler.from_config(
            self._scheduler_config, timestep_spacing="trailing"
        )
        try:
            latents = self._run(job, on_step)
        except BaseException:
            self._pipe.transformer._reset_stateful_cache()  # a cut-off run leaks cached blocks into the next
            self._pipe.maybe_free_model_hooks()
            raise
        if not torch.isfinite(latents).all():
            raise UnusableResult("The model produced values that are not finite.")
        return latents

    def _run(self, job: GenerationInput, on_step: Callable[[int], None]) -> torch.Tensor:
        def report(_pipe: object, index: int, _time: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            on_step(index + 1)
            return kwargs

        output = self._pipe(
            prompt=self._wording(job.prompt),
            negative_prompt=self._wording(job.negative_prompt),
            width=job.width,
            height=job.height,
            num_frames=job.frames,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            callback_on_step_end=report,
            output_type="latent",
        )
        return self._without_padding(output.frames, frames=job.frames)

    def _wording(self, prompt: str) -> str:
        """The tiny model's vocabulary has no capitals, and T5Tokenizer forgets a normaliser when it is saved."""
        return prompt.lower() if self._lower_case else prompt

    def _without_padding(self, latents: torch.Tensor, *, frames: int) -> torch.Tensor:
        """Drop the leading latent frames that models with a temporal patch (CogVideoX 1.5) add."""
        wanted = (frames - 1) // self._pipe.vae_scale_factor_temporal + 1
        return latents[:, latents.shape[1] - wanted :]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Frames of shape (count, height, width, 3), RGB. Short of GPU memory, it decodes in tiles instead."""
        try:
            video = self._pipe.decode_latents(latents)
        except torch.OutOfMemoryError:
            log.warning("out of memory while decoding: decoding in tiles from now on")
            torch.cuda.empty_cache()
            self._pipe.vae.enable_tiling()
            video = self._pipe.decode_latents(latents)
        finally:
            self._pipe.maybe_free_model_hooks()
        pixels = (video[0].float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        frames: NDArray[np.uint8] = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return frames


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU ran out of memory, after which the process can go on."""
    return isinstance(error, torch.OutOfMemoryError)


def poisons_process(error: BaseException) -> bool:
    """Whether the error leaves the CUDA context unusable, so that only a new process helps."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def free_memory() -> None:
    """Give cached GPU memory back after a failure."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _choose_device(model: str, device: str) -> str:
    if device == "auto":
        device = "cpu" if model == "tiny" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelUnavailable(f"{shown_name(model)} needs a CUDA GPU, and this process sees none.")
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        raise ModelUnavailable(
            f"{torch.cuda.get_device_name()} has no bfloat16, and float16 gives black frames."
        )
    return device


def _check_folder(model: str) -> None:
    """A folder is local and complete, or it will not become so by trying again."""
    folder = Path(model)
    if (folder.is_dir() or folder.is_absolute()) and not (folder / "model_index.json").is_file():
        raise ModelUnavailable(f"{shown_name(model)} cannot be loaded: the folder has no model_index.json.")


def _dtype(device: str) -> torch.dtype:
    """Never float16: it gives NaN and black frames on the 5B."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def _place(pipe: CogVideoXPipeline, device: str) -> None:
    if device == "cpu":
        return
    memory = torch.cuda.get_device_properties(0).total_memory
    if memory < TILE_BELOW:
        pipe.vae.enable_tiling()
    if memory < OFFLOAD_BELOW:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to(device)


def _device_name(device: str) -> str:
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device


def _quiet_progress_bars() -> None:
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
