"""The published models, the profiles in which they run, and the cards they fit: known before anything is downloaded.

Sources: the models' cards and configurations on huggingface.co/zai-org (formerly THUDM) and the CogVideo README. What a
card needs is counted on tensors of their shapes without data (tests/gpu_node/test_memory.py does it again).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]
ProfileName = Literal["exact", "fast", "memory"]
Quantization = Literal["none", "fp8", "int8"]
StepCache = Literal["none", "skip_light", "skip", "skip_strong", "faster_cache"]
# The names are diffusers', but for `flash_3` and `flash_3_fp8`, which are of the package fa3-fwd.
AttentionBackend = Literal[
    "auto", "native", "_native_cudnn", "_native_flash", "flash", "flash_3", "flash_3_fp8", "sage"
]
LOSSY_ATTENTION = ("flash_3_fp8", "sage")

GB = 10**9
TEXT_ENCODER_GB = 9.52  # T5-XXL's encoder in 16 bits
VAE_GB = 0.43
TEXT_TOKENS = 226
SPARE_GB = 1.0  # what CUDA's allocator cannot use, and room that kernels work in

# LICENSE in the repositories of all but the 2B.
COGVIDEOX_LICENSE = (
    "CogVideoX License: research is free; commercial use takes a free registration at open.bigmodel.cn/mla/form, "
    "and another agreement beyond a million visits a month"
)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """A model as it was made to be used: as published, or as it turned out when it was loaded.

    width, height: pixels. frames: the most it was trained for. frame_unit: it makes frame_unit·N + 1. fps: frames a
    second in the training data.
    takes_image: makes every clip from a picture. fixed_size: makes no other size; the places of its tokens were learned
    for this one (CogVideoX-5B-I2V), or it knows pictures of no other (tiny). guidance_scale: used where none is asked
    for. dtypes: those in which its pictures are sound, the published one first.

    In 16 bits, for a clip of its own size and length: transformer_gb: its weights; denoise_gb, decode_gb: the most
    besides all weights, in a step with guidance and in the VAE.
    """

    name: str
    hub_id: str
    transformer_gb: float = 11.14
    transformer_8bit_gb: float = 6.39
    denoise_gb: float = 3.04
    decode_gb: float = 9.88
    decode_tiled_gb: float = 2.57
    faster_cache_gb: float = 18.35
    width: int = 720
    height: int = 480
    frames: int = 49
    frame_unit: int = 8
    fps: int = 8
    takes_image: bool = False
    fixed_size: bool = False
    guidance_scale: float = 6.0  # of all published models (their cards)
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    # TeaCache's polynomials (github.com/ali-vilab/TeaCache), by which `step_skip` judges steps.
    skip_coefficients: tuple[float, ...] = (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339)
    revision: str = "main"  # of the hub's repository: a commit, where one is known
    license: str = COGVIDEOX_LICENSE
    text_encoder_bits: int = 16  # as published; it is loaded in 16

    @property
    def download_gb(self) -> float:
        """All files of the model."""
        return round(self.transformer_gb + TEXT_ENCODER_GB * self.text_encoder_bits / 16 + VAE_GB, 1)


_FIFTEEN = Traits(
    name="CogVideoX1.5-5B",
    hub_id="THUDM/CogVideoX1.5-5B",
    denoise_gb=7.74,
    decode_gb=36.29,
    decode_tiled_gb=3.01,
    faster_cache_gb=44.45,
    width=1360,
    height=768,
    frames=81,
    frame_unit=16,
    fps=16,
    skip_coefficients=(250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    revision="fdc5267c90b5c06492985b966e43aae984e189e0",
    text_encoder_bits=32,
)
PUBLISHED = (
    Traits(
        name="CogVideoX-5B",
        hub_id="THUDM/CogVideoX-5b",
        revision="8d6ea3f817438460b25595a120f109b88d5fdfad",
    ),
    # Its weights are float16, and so is what its card recommends; only of the 5B is float16 known to give black frames.
    Traits(
        name="CogVideoX-2B",
        hub_id="THUDM/CogVideoX-2b",
        transformer_gb=3.46,
        transformer_8bit_gb=2.13,
        denoise_gb=1.64,
        faster_cache_gb=8.19,
        dtypes=("float16", "bfloat16", "float32"),
        skip_coefficients=(-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
        revision="1137dacfc2c9c012bed6a0793f4ecf2ca8e7ba01",
        license="Apache-2.0, also for commercial use",
    ),
    Traits(
        name="CogVideoX-5B-I2V",
        hub_id="THUDM/CogVideoX-5b-I2V",
        takes_image=True,
        revision="a6f0f4858a8395e7429d82493864ce92bf73af11",
    ),
    _FIFTEEN,
    replace(
        _FIFTEEN,
        name="CogVideoX1.5-5B-I2V",
        hub_id="THUDM/CogVideoX1.5-5B-I2V",
        takes_image=True,
        skip_coefficients=(122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
        revision="46c90528707aebbe69066390b4fe7e7d24c9c2a4",
    ),
)
DEFAULT = PUBLISHED[0]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A way to run a model: which of its parts may lose precision for speed or for memory. Recorded with every clip.

    `saves_memory`: the text encoder stays on the CPU, and the VAE decodes in tiles, however large the card is.
    `is_float32`: the operator asked for twice the 16 bits.
    """

    name: ProfileName
    quantization: Quantization = "none"
    step_cache: StepCache = "none"
    saves_memory: bool = False
    is_float32: bool = False
    promise: str


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="exact", promise="the model as published, rounding apart"),
        # Published of a model made from the 5B, on one H100: 1.57, 2.07, 2.68 times as fast in the three strengths
        # (TeaCache for ConsisID); of FasterCache 1.55 (huggingface/diffusers#10163). benchmarks/gpu_node.py measures.
        Profile(
            name="fast",
            quantization="fp8",
            step_cache="skip",
            promise="8-bit arithmetic, and steps left out: clips differ a little from exact ones",
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


def choose_placement(traits: Traits, profile: Profile, *, free_gb: float) -> Placement | None:
    """Return the best placement that fits a card with so much free memory; None when there is none.

    Tiles cost 1.4 times the decoding and blend their seams, a text encoder on the CPU only the first clip of a prompt.
    """
    best_first = [(True, False), (False, False), (True, True), (False, True)]
    for text_on_gpu, tiled in best_first[3:] if profile.saves_memory else best_first:
        peak = peak_gb(traits, profile, text_on_gpu=text_on_gpu, tiled=tiled)
        if peak <= free_gb:
            return Placement(text_on_gpu=text_on_gpu, tiled=tiled, peak_gb=peak)
    return None


def peak_gb(traits: Traits, profile: Profile, *, text_on_gpu: bool, tiled: bool) -> float:
    """Return the most GPU memory that a clip of the model's own size and length takes."""
    transformer = traits.transformer_gb if profile.quantization == "none" else traits.transformer_8bit_gb
    weights, denoise = transformer + VAE_GB + (TEXT_ENCODER_GB if text_on_gpu else 0), traits.denoise_gb
    if profile.step_cache == "faster_cache":
        denoise += traits.faster_cache_gb
    beside = max(denoise, traits.decode_tiled_gb if tiled else traits.decode_gb)
    return round((weights + beside) * (2 if profile.is_float32 else 1) + SPARE_GB, 1)
