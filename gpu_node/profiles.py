"""How a model is run: which of its parts may lose precision for speed or for memory. Recorded with every clip."""

from dataclasses import dataclass
from typing import Literal

ProfileName = Literal["exact", "fast", "memory"]
Quantization = Literal["none", "fp8", "int8"]
StepCache = Literal["none", "faster_cache", "pab", "first_block", "cache_dit"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """`saves_memory`: the text encoder stays on the CPU, and the VAE decodes in tiles, however large the card is."""

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
