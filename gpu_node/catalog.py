"""The published models, the profiles in which they run, and the cards they fit: known before anything is downloaded.

Sources: the models' cards and configurations on huggingface.co/zai-org (formerly THUDM) and the CogVideo README. What a
card needs is estimated from parameter counts and one measured peak: 31.7 GB for the 5B in bfloat16 with all parts on
the GPU and its VAE decoding 49 frames of 720×480 in one piece, 19.8 GB of them weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]
ProfileName = Literal["exact", "fast", "memory"]
Quantization = Literal["none", "fp8", "int8"]
StepCache = Literal["none", "faster_cache"]

TEXT_ENCODER_GB = 9.5  # T5-XXL's encoder, 4.76 billion parameters in 16 bits
VAE_GB = 0.43
GB = 10**9
UNTILED_DECODE_GB = 11.9  # beyond the weights, at 720×480; it grows with the size, not with the frames
TILED_DECODE_GB = 3.5
DENOISE_GB = 3.2  # beyond the weights, for two times 17,776 tokens: 49 frames of 720×480
REFERENCE_PIXELS = 720 * 480
TEXT_TOKENS = 226
REFERENCE_TOKENS = 13 * REFERENCE_PIXELS / 256
SPARE_GB = 1.0  # CUDA's context, and what its allocator cannot use


@dataclass(frozen=True, kw_only=True)
class Traits:
    """A model as it was made to be used: as published, or as it turned out when it was loaded.

    width, height: pixels. frames: the most it was trained for. frame_unit: it makes frame_unit·N + 1. fps: frames a
    second in the training data. parameters: of the transformer, in billions; blocks, channels: of the transformer.
    takes_image: makes every clip from a picture. fixed_size: makes no other size; the places of its tokens were learned
    for this one (CogVideoX-5B-I2V), or it knows pictures of no other (tiny). guidance_scale: used where none is asked
    for. dtypes: those in which its pictures are sound, the published one first.
    """

    name: str
    hub_id: str
    parameters: float
    blocks: int = 42
    channels: int = 3072
    width: int = 720
    height: int = 480
    frames: int = 49
    frame_unit: int = 8
    fps: int = 8
    takes_image: bool = False
    fixed_size: bool = False
    guidance_scale: float = 6.0  # of all published models (their cards)
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    revision: str = "main"  # of the hub's repository: a commit, where one is known

    @property
    def download_gb(self) -> float:
        """All files of the model, in 16 bits as they are published."""
        return round(2 * self.parameters + TEXT_ENCODER_GB + VAE_GB, 1)


_FIFTEEN = Traits(
    name="CogVideoX1.5-5B",
    hub_id="THUDM/CogVideoX1.5-5B",
    parameters=5.57,
    width=1360,
    height=768,
    frames=81,
    frame_unit=16,
    fps=16,
)
PUBLISHED = (
    Traits(
        name="CogVideoX-5B",
        hub_id="THUDM/CogVideoX-5b",
        parameters=5.57,
        revision="8d6ea3f817438460b25595a120f109b88d5fdfad",
    ),
    # Its weights are float16, and so is what its card recommends; only of the 5B is float16 known to give black frames.
    Traits(
        name="CogVideoX-2B",
        hub_id="THUDM/CogVideoX-2b",
        parameters=1.69,
        blocks=30,
        channels=1920,
        dtypes=("float16", "bfloat16", "float32"),
        revision="1137dacfc2c9c012bed6a0793f4ecf2ca8e7ba01",
    ),
    Traits(name="CogVideoX-5B-I2V", hub_id="THUDM/CogVideoX-5b-I2V", parameters=5.57, takes_image=True),
    _FIFTEEN,
    replace(_FIFTEEN, name="CogVideoX1.5-5B-I2V", hub_id="THUDM/CogVideoX1.5-5B-I2V", takes_image=True),
)
DEFAULT = PUBLISHED[0]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A way to run a model: which of its parts may lose precision for speed or for memory. Recorded with every clip.

    `saves_memory`: the text encoder stays on the CPU, and the VAE decodes in tiles, however large the card is.
    """

    name: ProfileName
    quantization: Quantization = "none"
    step_cache: StepCache = "none"
    saves_memory: bool = False
    promise: str


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="exact", promise="the model as published, rounding apart"),
        # FasterCache has the best published figure of the step caches of diffusers on CogVideoX-5B: 1.55 times as
        # fast (huggingface/diffusers#10163). Not measured here; benchmarks/gpu_node.py does.
        Profile(
            name="fast",
            quantization="fp8",
            step_cache="faster_cache",
            promise="8-bit arithmetic and a step cache: clips differ a little from exact ones",
        ),
        Profile(
            name="memory",
            quantization="int8",
            saves_memory=True,
            promise="8-bit weights, for cards of 16 to 24 GB",
        ),
    )
}


def find(model: str) -> Traits | None:
    """Return the published model of this name: `5B`, `CogVideoX-5B`, `THUDM/CogVideoX-5b`, or a folder so named."""
    wanted = _plain(Path(model).name)
    for traits in PUBLISHED:
        if wanted in (_plain(traits.name), _plain(traits.name).removeprefix("cogvideox")):
            return traits
    return None


def hub_id(model: str) -> str:
    """Return the name to load: short names become hub ids; hub ids and folders stay as they are."""
    traits = find(model)
    return traits.hub_id if traits is not None and "/" not in model and not Path(model).exists() else model


def _plain(name: str) -> str:
    return name.lower().replace("-", "")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The text encoder's place, and whether the VAE decodes in tiles; `peak_gb` is what the card then needs."""

    text_on_gpu: bool
    tiled: bool
    peak_gb: float


def choose_placement(traits: Traits, profile: Profile, *, card_gb: float) -> Placement | None:
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
    if profile.step_cache != "none":
        denoise += faster_cache_gb(
            blocks=traits.blocks, tokens=tokens + TEXT_TOKENS, channels=traits.channels
        )
    decode = TILED_DECODE_GB if tiled else UNTILED_DECODE_GB * pixels / REFERENCE_PIXELS
    return round(weights + max(denoise, decode) + SPARE_GB, 1)


def faster_cache_gb(*, blocks: int, tokens: int, channels: int) -> float:
    """Return what the last two results of every attention take, in 16 bits, with guidance, while it denoises.

    tokens: of video and text together.
    """
    return 2 * blocks * 2 * tokens * channels * 2 / GB
