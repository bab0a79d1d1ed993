"""The published models, and the profiles in which they run: facts known before anything is downloaded.

Sources: the models' cards and configurations on huggingface.co/zai-org (formerly THUDM) and the CogVideo README.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Dtype = Literal["bfloat16", "float16", "float32"]
ProfileName = Literal["exact", "fast", "memory"]
Quantization = Literal["none", "fp8", "int8"]
StepCache = Literal["none", "faster_cache", "pab", "first_block", "cache_dit"]

TEXT_ENCODER_GB = 9.5  # T5-XXL's encoder, 4.76 billion parameters in 16 bits
VAE_GB = 0.43


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
    Traits(name="CogVideoX-5B", hub_id="THUDM/CogVideoX-5b", parameters=5.57),
    # Its weights are float16, and so is what its card recommends; only of the 5B is float16 known to give black frames.
    Traits(
        name="CogVideoX-2B",
        hub_id="THUDM/CogVideoX-2b",
        parameters=1.69,
        blocks=30,
        channels=1920,
        dtypes=("float16", "bfloat16", "float32"),
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
        # FasterCache has the best published figure of the step caches on CogVideoX-5B: 1.55 times as fast, against
        # 1.34 for PAB (huggingface/diffusers#10163, #9562). Not measured here; benchmarks/gpu_node.py does.
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
