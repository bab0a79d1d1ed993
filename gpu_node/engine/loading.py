"""Loading: from the operator's options to a model in place, with its class, precision, device and levers."""

import logging
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

import psutil
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXImageToVideoPipeline, CogVideoXPipeline
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from gpu_node import catalog
from gpu_node.catalog import GB, Placement, Traits
from gpu_node.demo_model.architecture import model_folder
from gpu_node.engine import attention, download, quantization, speed, step_skip, vae
from gpu_node.engine.download import Report
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.settings import EMBEDDED, EngineOptions, shown_name

log = logging.getLogger(__name__)

COMPILE_BACKEND = "inductor"
TINY_GUIDANCE = 1.75  # it was trained to follow its prompt almost without
KEPT_PROMPTS = 64  # 1.9 MB each for the 5B in 16 bits
AnyPipeline: TypeAlias = "CogVideoXPipeline | CogVideoXImageToVideoPipeline"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to be used. `setup` is recorded with each clip.

    `embed` gives a text's embedding, (1, tokens, width of the text encoder), on the transformer's device, and keeps it
    for the next clip with the same words. The 5B takes 226 tokens. There is no attention mask, so texts are always
    padded to the length that the model was trained with.
    """

    pipe: AnyPipeline
    embed: Callable[[str], torch.Tensor]
    traits: Traits
    device: torch.device
    tiled: bool
    setup: dict[str, str | bool]
    skipping: step_skip.SkippingBlocks | None


def load(
    options: EngineOptions, *, compile_backend: str = COMPILE_BACKEND, report: Report = log.info
) -> Loaded:
    """Load `tiny`, a published model by name, a hub id or a folder, and set up its profile.

    Raises ModelUnavailable where trying again is no use; OSError or MemoryError where it may be of some.
    """
    device = _choose_device(options)
    dtype = _choose_dtype(options, device)
    quantization.check_hardware(options.levers.quantization, device)  # before anything is downloaded
    place = _choose_placement(options, device)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if device.type == "cpu":
        torch.set_num_threads(1 if options.model in EMBEDDED else torch.get_num_threads())
    pipe = _from_disk(options, dtype, report)
    return set_up(pipe, options, place, device, dtype, compile_backend=compile_backend)


def set_up(
    pipe: AnyPipeline,
    options: EngineOptions,
    place: Placement,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compile_backend: str = COMPILE_BACKEND,
) -> Loaded:
    """Put the parts in place and turn the levers on."""
    # Before the weights move from the CPU: a card for 8-bit weights may be too small for 16.
    levers = options.levers
    if levers.quantization != "none":
        quantization.quantize(pipe.transformer, levers.quantization)
    vae.set_up(pipe.vae, device)
    embed = _put_in_place(pipe, place, device, dtype)
    traits = _traits(pipe, options)
    backend = _set_attention(pipe, options, traits, device, dtype)
    compiled = options.compile == "on" or (options.compile == "auto" and device.type == "cuda")
    if compiled:
        names = speed.PARTS if levers.step_cache == "faster_cache" else speed.BLOCKS
        speed.compile_forward(pipe.transformer, names=names, backend=compile_backend)
    skips = levers.step_cache in step_skip.THRESHOLDS
    skipping = step_skip.install(pipe.transformer) if skips else None
    setup: dict[str, str | bool] = {
        "model": shown_name(options.model),
        "profile": levers.name,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": backend,
        "compiled": compiled,
        "quantization": levers.quantization,
        "step_cache": levers.step_cache,
    }
    folder = Path(pipe.name_or_path or "")  # none of one with random weights
    if folder.parent.name == "snapshots":  # as the hub's cache keeps them
        setup["revision"] = folder.name
    log.info("set up: %s", ", ".join(f"{name} {value}" for name, value in setup.items()))
    return Loaded(
        pipe=pipe,
        embed=embed,
        traits=traits,
        device=device,
        tiled=place.tiled,
        setup=setup,
        skipping=skipping,
    )


def _choose_device(options: EngineOptions) -> torch.device:
    """Return the device. Raises ModelUnavailable for a GPU that is not there."""
    wanted = options.device
    if wanted == "auto":
        wanted = "cpu" if options.model in EMBEDDED else "cuda"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelUnavailable(
            f"{shown_name(options.model)} needs a CUDA GPU, and sees none: --check says why."
        )
    device = torch.device(wanted if ":" in wanted else "cuda:0")
    if device.index >= torch.cuda.device_count():
        raise ModelUnavailable(
            f"GPU_NODE_DEVICE: there is no {device}; {torch.cuda.device_count()} are there."
        )
    torch.cuda.set_device(device)
    return device


def _choose_dtype(options: EngineOptions, device: torch.device) -> torch.dtype:
    """Return the operator's choice, else what the model was published in; on a CPU float32, the fastest there."""
    if options.dtype != "auto":
        wanted = options.dtype
    elif device.type == "cpu":
        wanted = "float32"
    else:
        wanted = options.traits.dtypes[0]
    if (
        wanted == "bfloat16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise ModelUnavailable(
            f"{torch.cuda.get_device_name(device)} has no bfloat16, and float16 gives black frames."
        )
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def _choose_placement(options: EngineOptions, device: torch.device) -> Placement:
    if device.type == "cpu":
        return Placement(text_on_gpu=False, tiled=options.profile == "memory", peak_gb=0)
    free, total = (size / GB for size in torch.cuda.mem_get_info(device))
    place = partial(catalog.choose_placement, options.traits, options.levers)
    found = place(free_gb=free)
    if found is None:  # what another process has may come free; what the card does not have will not
        raise (MemoryError if place(free_gb=total) else ModelUnavailable)(
            f"{shown_name(options.model)} in the profile {options.profile} does not fit "
            f"{torch.cuda.get_device_name(device)}: of its {total:.0f} GB are {free:.0f} GB free. "
            "`python -m gpu_node --check` says what fits."
        )
    return found


def _from_disk(options: EngineOptions, dtype: torch.dtype, report: Report) -> AnyPipeline:
    """Load the pipeline onto the CPU, of the class that its model_index.json names; download it if need be."""
    shown, folder = shown_name(options.model), Path(options.model)
    if options.model in EMBEDDED:
        assert options.cache_dir is not None
        folder = Path(model_folder(options.model, options.cache_dir))
    elif not (folder.is_dir() or folder.is_absolute()):
        folder = download.fetch(options.model, options.known_revision, report)
    report("loading the model")
    if missing := download.missing_parts(folder):
        raise ModelUnavailable(f"{shown} cannot be loaded: the folder has no complete {', '.join(missing)}.")
    name = CogVideoXPipeline.load_config(folder)["_class_name"]
    classes = {kind.__name__: kind for kind in (CogVideoXPipeline, CogVideoXImageToVideoPipeline)}
    if name not in classes:
        raise ModelUnavailable(f"{shown} is a {name}, not one of {', '.join(classes)}.")
    pipe: AnyPipeline = classes[name].from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _put_in_place(
    pipe: AnyPipeline, place: Placement, device: torch.device, dtype: torch.dtype
) -> Callable[[str], torch.Tensor]:
    """Move the parts; the text encoder leaves the pipeline, so that it can work ahead of it. Return how it embeds."""
    text_device = device if place.text_on_gpu else torch.device("cpu")
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    pipe.register_modules(tokenizer=None, text_encoder=None)
    pipe.to(device)  # first: what the weights leave behind may be needed for the text encoder
    text = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.to(text_device, _text_dtype(encoder, text_device, dtype)),
        vae=None,
        transformer=None,
        scheduler=pipe.scheduler,
    )
    if device.type == "cuda":
        speed.times_to(pipe.transformer, device)
    tokens = pipe.transformer.config.max_text_seq_length

    @lru_cache(maxsize=KEPT_PROMPTS)
    @torch.no_grad()
    def embed(prompt: str) -> torch.Tensor:
        embedding, _ = text.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=tokens,
            device=text_device,
            dtype=dtype,
        )
        on_the_gpu: torch.Tensor = embedding.to(device)
        return on_the_gpu

    return embed


def _text_dtype(encoder: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the model's; for one of 16 bits on a CPU, bfloat16 or, where that is faster and has the room, float32.

    Without AVX-512 or AMX bfloat16 takes ten times as long. In float16 T5 is slow there, and overflows.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    weight = next(part.weight for part in encoder.modules() if isinstance(part, torch.nn.Linear))
    seconds = []
    for kind in (torch.bfloat16, torch.float32):
        inputs, matrix = torch.ones(catalog.TEXT_TOKENS, weight.shape[1], dtype=kind), weight.to("cpu", kind)
        work = partial(torch.nn.functional.linear, inputs, matrix)
        seconds.append(min(timeit.repeat(work, number=1, repeat=4)))
    log.info("text encoder: bfloat16 %.4f s, float32 %.4f s a layer", *seconds)
    # float32 takes 2 bytes more of each number; the third is to spare.
    has_room = psutil.virtual_memory().available > 3 * encoder.num_parameters()
    return torch.float32 if has_room and seconds[1] < seconds[0] / 1.5 else torch.bfloat16


def fresh_scheduler(pipe: AnyPipeline) -> CogVideoXDDIMScheduler | speed.DPMScheduler:
    """Make a scheduler for one job, as it keeps state between steps: DDIM for the 2B, else DPM (their cards)."""
    only_the_2b = not pipe.transformer.config.use_rotary_positional_embeddings
    kind = CogVideoXDDIMScheduler if only_the_2b else speed.DPMScheduler
    scheduler: CogVideoXDDIMScheduler | speed.DPMScheduler
    scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return scheduler


def _traits(pipe: AnyPipeline, options: EngineOptions) -> Traits:
    """Return the traits as published; of an unknown model, by its configuration (that of 1.5 names no true size)."""
    traits, config, is_tiny = catalog.find(options.model), pipe.transformer.config, options.model == "tiny"
    if traits is None:
        traits = replace(
            catalog.DEFAULT,
            name=shown_name(options.model),
            width=config.sample_width * pipe.vae_scale_factor_spatial,
            height=config.sample_height * pipe.vae_scale_factor_spatial,
            frames=config.sample_frames,
            guidance_scale=TINY_GUIDANCE if is_tiny else catalog.DEFAULT.guidance_scale,
        )
    return replace(
        traits,
        takes_image=isinstance(pipe, CogVideoXImageToVideoPipeline),
        fixed_size=config.use_learned_positional_embeddings or is_tiny,
    )


def _set_attention(
    pipe: AnyPipeline, options: EngineOptions, traits: Traits, device: torch.device, dtype: torch.dtype
) -> str:
    """Use the operator's backend; else on a GPU the fastest that the profile allows, at the model's own size."""
    backend: str = options.attention
    if backend != "auto":
        attention.check_backend(backend, dtype=dtype, device=device)
    elif device.type == "cuda":
        candidates = (*attention.EXACT, "flash_3_fp8") if options.profile == "fast" else attention.EXACT
        shape = _attention_shape(pipe, traits)
        backend = attention.fastest_backend(candidates, shape=shape, dtype=dtype, device=device)
    else:
        backend = attention.STOCK
    pipe.transformer.set_attn_processor(attention.DispatchedAttention(backend))
    return backend


def _attention_shape(pipe: AnyPipeline, traits: Traits) -> tuple[int, int, int, int]:
    """Return (batch, tokens, heads, width) for a clip of full length with guidance."""
    config = pipe.transformer.config
    pixels_a_token = (pipe.vae_scale_factor_spatial * config.patch_size) ** 2
    latent_frames = (traits.frames - 1) // pipe.vae_scale_factor_temporal + 1
    tokens = latent_frames * traits.width * traits.height // pixels_a_token // (config.patch_size_t or 1)
    return 2, config.max_text_seq_length + tokens, config.num_attention_heads, config.attention_head_dim
