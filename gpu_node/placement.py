"""Placement of a model on a card: worked out from the sizes of the parts, before anything is loaded.

The figures are estimates from parameter counts and one measured peak: 31.7 GB for the 5B in bfloat16 with all parts
on the GPU and its VAE decoding 49 frames of 720×480 in one piece, 19.8 GB of them weights.
"""

from dataclasses import dataclass

from gpu_node.catalog import TEXT_ENCODER_GB, VAE_GB, Profile, StepCache, Traits

GB = 10**9
UNTILED_DECODE_GB = 11.9  # beyond the weights, at 720×480; it grows with the size, not with the frames
TILED_DECODE_GB = 3.5
DENOISE_GB = 3.2  # beyond the weights, for two times 17,776 tokens: 49 frames of 720×480
REFERENCE_PIXELS = 720 * 480
TEXT_TOKENS = 226
REFERENCE_TOKENS = 13 * REFERENCE_PIXELS / 256
SPARE_GB = 1.0  # CUDA's context, and what its allocator cannot use


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The text encoder's place, and whether the VAE decodes in tiles; `peak_gb` is what the card then needs."""

    text_on_gpu: bool
    tiled: bool
    peak_gb: float


def choose(traits: Traits, profile: Profile, *, card_gb: float) -> Placement | None:
    """Return the best placement that fits a card with so much memory; None when there is none.

    Tiles cost 1.4 times the decoding and blend their seams, a text encoder on the CPU only the first clip of a prompt.
    """
    best_first = [(True, False), (False, False), (True, True), (False, True)]
    for text_on_gpu, tiled in best_first[3:] if profile.saves_memory else best_first:
        peak = peak_gb(traits, profile, text_on_gpu=text_on_gpu, tiled=tiled)
        if peak <= card_gb:
            return Placement(text_on_gpu=text_on_gpu, tiled=tiled, peak_gb=peak)
    return None


def peak_gb(traits: Traits, profile: Profile, *, text_on_gpu: bool, tiled: bool) -> float:
    """Return the most GPU memory that a clip of the model's own size and length takes."""
    bytes_each = 2 if profile.quantization == "none" else 1.1  # 8 bits, and what is not quantised
    weights = bytes_each * traits.parameters + VAE_GB + (TEXT_ENCODER_GB if text_on_gpu else 0)
    pixels = traits.width * traits.height
    # 16×16 pixels and 4 frames each, 8 frames for CogVideoX 1.5
    tokens = ((traits.frames - 1) // 4 + 1) * pixels // 256 // (2 if traits.frame_unit == 16 else 1)
    denoise = DENOISE_GB * tokens / REFERENCE_TOKENS * (0.6 if traits.parameters < 3 else 1)
    denoise += step_cache_gb(
        profile.step_cache, blocks=traits.blocks, tokens=tokens + TEXT_TOKENS, channels=traits.channels
    )
    decode = TILED_DECODE_GB if tiled else UNTILED_DECODE_GB * pixels / REFERENCE_PIXELS
    return round(weights + max(denoise, decode) + SPARE_GB, 1)


def step_cache_gb(step_cache: StepCache, *, blocks: int, tokens: int, channels: int) -> float:
    """Return the memory that is kept from step to step until the denoising ends, in 16 bits, with guidance.

    tokens: of video and text together. FasterCache keeps the last two results of every attention, Pyramid Attention
    Broadcast the last one; the others keep some results of whole blocks, whatever their number.
    """
    results = {"none": 0, "faster_cache": 2 * blocks, "pab": blocks}.get(step_cache, 4)
    return results * 2 * tokens * channels * 2 / GB
