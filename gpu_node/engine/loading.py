"""From the operator's wishes to a model in place: which class, which precision, which device, which levers."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from gpu_node import models, placement, tiny
from gpu_node.engine import attention, compiling, quantization, step_caches
from gpu_node.engine.convolutions import flatten_small_convolutions
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.engine.prompts import PromptEncoder
from gpu_node.engine.scheduler import DPMScheduler, times_to
from gpu_node.settings import EMBEDDED, EngineOptions, shown_name

log = logging.getLogger(__name__)

GB = 10**9
TINY_GUIDANCE = 1.75  # it was trained to follow its words almost without
AnyPipeline: TypeAlias = "CogVideoXPipeline | CogVideoXImageToVideoPipeline"


@dataclass(frozen=True, kw_only=True)
class Native:
    """What the model was made for: pixels, frames, and `frame_unit` for the frames it makes, frame_unit·N + 1.

    `fixed_size`: no other can be made; the places of its tokens were learned for this one (CogVideoX-5B-I2V), or it
    knows pictures of no other (tiny). `guidance_scale`: what it was tuned for.
    """

    width: int
    height: int
    frames: int
    frame_unit: int
    fixed_size: bool
    guidance_scale: float


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to be used. `setup` is what each clip is recorded with."""

    pipe: AnyPipeline
    prompts: PromptEncoder
    native: Native
    device: torch.device
    tiled: bool
    setup: dict[str, str | bool]


def load(options: EngineOptions) -> Loaded:
    """Load `tiny`, a published model by name, a hub id or a folder, and set up its profile.

    Raises ModelUnavailable where trying again is no use; OSError when a download or the disk fails.
    """
    device = choose_device(options)
    dtype = choose_dtype(options, device)
    check_hardware(options, device)
    place = _choose_placement(options, device)
    _quiet_progress_bars()
    if device.type == "cpu":
        torch.set_num_threads(1 if options.model in EMBEDDED else torch.get_num_threads())
    return set_up(_from_disk(options, dtype), options, place, device, dtype)


def set_up(
    pipe: AnyPipeline,
    options: EngineOptions,
    place: placement.Placement,
    device: torch.device,
    dtype: torch.dtype,
) -> Loaded:
    """Put the parts in place and turn the levers on."""
    _prepare_before_moving(pipe, options, device)
    prompts = _put_in_place(pipe, place, device, dtype)
    native = _native(pipe, options)
    backend = _set_attention(pipe, options.attention, native, device, dtype)
    compiled = _compile_and_cache(pipe, options, device)
    setup: dict[str, str | bool] = {
        "model": shown_name(options.model),
        "profile": options.profile,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": backend,
        "compiled": compiled,
        "quantization": options.quantization,
        "step_cache": options.step_cache,
    }
    log.info("set up: %s", ", ".join(f"{name} {value}" for name, value in setup.items()))
    return Loaded(pipe=pipe, prompts=prompts, native=native, device=device, tiled=place.tiled, setup=setup)


def choose_device(options: EngineOptions) -> torch.device:
    """Raises ModelUnavailable for a GPU that is not there."""
    wanted, name = options.device, shown_name(options.model)
    if wanted == "auto":
        wanted = "cpu" if options.model in EMBEDDED else "cuda"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelUnavailable(f"{name} needs a CUDA GPU, and this process sees none.")
    device = torch.device(wanted if ":" in wanted else "cuda:0")
    if device.index >= torch.cuda.device_count():
        raise ModelUnavailable(
            f"GPU_NODE_DEVICE: there is no {device}; {torch.cuda.device_count()} are there."
        )
    torch.cuda.set_device(device)
    return device


def check_hardware(options: EngineOptions, device: torch.device) -> None:
    """Before anything is downloaded. Raises ModelUnavailable for what this hardware cannot do."""
    if options.quantization == "fp8":
        quantization.check_fp8(device)


def choose_dtype(options: EngineOptions, device: torch.device) -> torch.dtype:
    """What the operator wants, else what the model was published in; on a CPU float32, which is fastest there."""
    if options.dtype != "auto":
        wanted = options.dtype
    elif device.type == "cpu":
        wanted = "float32"
    else:
        wanted = options.dtypes[0]
    if wanted == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ModelUnavailable(
            f"{torch.cuda.get_device_name(device)} has no bfloat16, and float16 gives black frames."
        )
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def _choose_placement(options: EngineOptions, device: torch.device) -> placement.Placement:
    if device.type == "cpu":
        return placement.Placement(text_on_gpu=False, tiled=options.profile == "memory", peak_gb=0)
    card_gb = torch.cuda.get_device_properties(device).total_memory / GB
    traits = models.find(options.model) or models.DEFAULT
    found = placement.choose(
        traits,
        saves_memory=options.saves_memory,
        quantization=options.quantization,
        step_cache=options.step_cache,
        card_gb=card_gb,
    )
    if found is None:
        raise ModelUnavailable(
            f"{shown_name(options.model)} in the profile {options.profile} does not fit "
            f"{torch.cuda.get_device_name(device)} with {card_gb:.0f} GB. `python -m gpu_node --check` says what does."
        )
    return found


def _from_disk(options: EngineOptions, dtype: torch.dtype) -> AnyPipeline:
    """The pipeline on the CPU, of the class that its model_index.json names."""
    _check_folder(options.model)
    source = options.model
    if source in EMBEDDED:
        source = str(tiny.model_folder(source, options.cache_dir))
    name = CogVideoXPipeline.load_config(source)["_class_name"]
    classes = {kind.__name__: kind for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)}
    if name not in classes:
        raise ModelUnavailable(f"{shown_name(options.model)} is a {name}, not one of {', '.join(classes)}.")
    pipe: AnyPipeline = classes[name].from_pretrained(source, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_folder(model: str) -> None:
    """A folder is local and complete, or it will not become so by trying again."""
    folder = Path(model)
    if (folder.is_dir() or folder.is_absolute()) and not (folder / "model_index.json").is_file():
        raise ModelUnavailable(f"{shown_name(model)} cannot be loaded: the folder has no model_index.json.")


def _prepare_before_moving(pipe: AnyPipeline, options: EngineOptions, device: torch.device) -> None:
    """What comes before the weights move from the CPU: a card for 8-bit weights may be too small for 16."""
    if options.quantization != "none":
        quantization.quantize(pipe.transformer, options.quantization)
    if device.type == "cpu":
        flatten_small_convolutions(pipe.vae)


def _put_in_place(
    pipe: AnyPipeline, place: placement.Placement, device: torch.device, dtype: torch.dtype
) -> PromptEncoder:
    """Move the parts; the text encoder leaves the pipeline, so that it can work ahead of it."""
    text_device = device if place.text_on_gpu else torch.device("cpu")
    # On a CPU, T5 in float16 is slow and overflows; in bfloat16 it does neither.
    text_dtype = torch.bfloat16 if text_device.type == "cpu" and dtype == torch.float16 else dtype
    text = CogVideoXPipeline(
        tokenizer=pipe.tokenizer,
        text_encoder=pipe.text_encoder.to(text_device, text_dtype),
        vae=None,
        transformer=None,
        scheduler=pipe.scheduler,
    )
    pipe.register_modules(tokenizer=None, text_encoder=None)
    pipe.to(device)
    _make_tiles_fit(pipe.vae)
    if device.type == "cuda":
        times_to(pipe.transformer, device)
    length = pipe.transformer.config.max_text_seq_length
    return PromptEncoder(text, tokens=length, runs_on=text_device, goes_to=device, dtype=dtype)


def _make_tiles_fit(vae: AutoencoderKLCogVideoX) -> None:
    """Tiles whose overlaps are whole latents. As diffusers cuts them, that is so at the published sizes only."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = vae.tile_latent_min_height, vae.tile_latent_min_width
    steps = (
        int(height * (1 - vae.tile_overlap_factor_height)),
        int(width * (1 - vae.tile_overlap_factor_width)),
    )
    kept = (
        vae.tile_sample_min_height - int(vae.tile_sample_min_height * vae.tile_overlap_factor_height),
        vae.tile_sample_min_width - int(vae.tile_sample_min_width * vae.tile_overlap_factor_width),
    )
    if kept == (steps[0] * scale, steps[1] * scale):
        return
    even = [max(2, side // 2 * 2) * scale for side in (height, width)]
    vae.enable_tiling(even[0], even[1], 0.5, 0.5)
    vae.disable_tiling()


def fresh_scheduler(pipe: AnyPipeline) -> CogVideoXDDIMScheduler | DPMScheduler:
    """A scheduler for one job, as they keep state between steps: DDIM for the 2B, DPM for all else (their cards)."""
    if not pipe.transformer.config.use_rotary_positional_embeddings:  # only the 2B has none
        return CogVideoXDDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    scheduler: DPMScheduler = DPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return scheduler


def _native(pipe: AnyPipeline, options: EngineOptions) -> Native:
    """As published; of a model nobody knows, what its configuration says (that of CogVideoX 1.5 names no true size)."""
    traits = models.find(options.model)
    config, scale = pipe.transformer.config, pipe.vae_scale_factor_spatial
    if traits is not None:
        return Native(
            width=traits.width,
            height=traits.height,
            frames=traits.frames,
            frame_unit=traits.frame_unit,
            fixed_size=config.use_learned_positional_embeddings,
            guidance_scale=models.DEFAULT_GUIDANCE,
        )
    return Native(
        width=config.sample_width * scale,
        height=config.sample_height * scale,
        frames=config.sample_frames,
        frame_unit=models.DEFAULT.frame_unit,
        fixed_size=config.use_learned_positional_embeddings or options.model == "tiny",
        guidance_scale=TINY_GUIDANCE if options.model == "tiny" else models.DEFAULT_GUIDANCE,
    )


def _set_attention(
    pipe: AnyPipeline, wanted: str, native: Native, device: torch.device, dtype: torch.dtype
) -> str:
    """The backend that the operator names; else on a GPU the fastest of the exact ones, at the model's own size."""
    backend = wanted
    if wanted == "auto":
        backend = attention.STOCK
        if device.type == "cuda":
            shape = attention_shape(pipe, native)
            backend = attention.fastest_backend(attention.EXACT, shape=shape, dtype=dtype, device=device)
    attention.use_backend(pipe.transformer, backend)
    return backend


def attention_shape(pipe: AnyPipeline, native: Native) -> tuple[int, int, int, int]:
    """(batch, tokens, heads, width) for a clip of full length with guidance."""
    config = pipe.transformer.config
    pixels_a_token = (pipe.vae_scale_factor_spatial * config.patch_size) ** 2
    latent_frames = (native.frames - 1) // pipe.vae_scale_factor_temporal + 1
    tokens = latent_frames * native.width * native.height // pixels_a_token // (config.patch_size_t or 1)
    return 2, config.max_text_seq_length + tokens, config.num_attention_heads, config.attention_head_dim


def _compile_and_cache(pipe: AnyPipeline, options: EngineOptions, device: torch.device) -> bool:
    """Compile first, so that the hooks of a step cache stay outside; whether it is compiled."""
    compiled = options.compile == "on" or (options.compile == "auto" and device.type == "cuda")
    if compiled:
        names = step_caches.compiled_parts(options.step_cache)
        compiling.compile_forward(pipe.transformer, names=names, backend=options.compile_backend)
    if options.step_cache != "none":
        step_caches.enable_step_cache(pipe, options.step_cache)
    return compiled


def _quiet_progress_bars() -> None:
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
