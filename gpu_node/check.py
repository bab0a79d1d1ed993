"""`python -m gpu_node --check [MODEL]`: can this card and this disk run a model, and in which profile?

It downloads nothing. It runs in a process of its own that imports torch, which the serving process never does.
"""

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_node import models, placement
from gpu_node.engine.quantization import FP8_CAPABILITY
from gpu_node.models import Traits
from gpu_node.profiles import PROFILES, Profile
from gpu_node.settings import EMBEDDED, BadConfiguration, load_settings

GB = 10**9
FITS, DOES_NOT_FIT, BAD_CONFIGURATION = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU. `capability`: compute capability, (9, 0) for Hopper."""

    name: str
    memory_gb: float
    capability: tuple[int, int]

    @property
    def has_bfloat16(self) -> bool:
        """Ampere and newer compute in bfloat16."""
        return self.capability >= (8, 0)

    @property
    def has_fp8(self) -> bool:
        """Ada and newer have matrix units for 8-bit floats."""
        return self.capability >= FP8_CAPABILITY


def cards() -> list[Card]:
    """What torch sees."""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            Card(
                name=properties.name,
                memory_gb=properties.total_memory / GB,
                capability=(properties.major, properties.minor),
            )
        )
    return found


def verdict(traits: Traits, profile: Profile, card: Card) -> tuple[bool, str]:
    """Whether the card runs the model in this profile, and how or why not, for people."""
    if not card.has_bfloat16 and traits.dtypes[0] == "bfloat16":
        return False, "no: the card has no bfloat16, and float16 gives black frames"
    if profile.quantization == "fp8" and not card.has_fp8:
        return False, "no: the card has no 8-bit floats (Ada, Hopper or newer have)"
    place = placement.choose(
        traits, saves_memory=profile.saves_memory, quantization=profile.quantization, card_gb=card.memory_gb
    )
    if place is None:
        least = placement.peak_gb(traits, quantization=profile.quantization, text_on_gpu=False, tiled=True)
        return False, f"no: it takes at least {least:.0f} GB"
    ways = [
        "" if place.text_on_gpu else "text encoder on the CPU",
        "decoding in tiles" if place.tiled else "",
    ]
    how = ", ".join(way for way in ways if way)
    return True, f"yes: about {place.peak_gb:.0f} GB" + (f" ({how})" if how else "")


def disk_verdict(traits: Traits, model: str) -> tuple[bool, str]:
    """Whether the weights are there, or fit where they would be kept."""
    if Path(model).is_dir():
        return True, f"a folder on this machine: {model}"
    cache = _hub_cache()
    if any(cache.glob(f"models--{traits.hub_id.replace('/', '--')}/snapshots/*/model_index.json")):
        return True, f"downloaded already, in {cache}"
    free = shutil.disk_usage(_nearest_existing(cache)).free / GB
    words = f"{traits.download_gb:.0f} GB to download into {cache}, where {free:.0f} GB are free"
    return free > traits.download_gb + 1, words


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def report(model: str, wanted: str, found: list[Card]) -> tuple[bool, list[str]]:
    """Whether the node can run as it is set up, and all that an operator wants to know, line by line."""
    traits = models.find(model)
    lines = [f"torch {torch.__version__}, diffusers {importlib.metadata.version('diffusers')}"]
    if model in EMBEDDED:
        return True, [*lines, f"{model}: runs anywhere, on the CPU; nothing is downloaded"]
    if traits is None:
        return True, [
            *lines,
            f"{model}: not a published CogVideoX; whether it fits is seen when it is loaded",
        ]
    length = f"{traits.frames} frames of {traits.width}x{traits.height}"
    lines.append(f"{traits.name}: {length}" + (", from a picture" if traits.takes_image else ""))
    disk_ok, words = disk_verdict(traits, model)
    lines.append(f"disk: {'yes' if disk_ok else 'no'}: {words}")
    if not found:
        return False, [*lines, "GPU: no: torch sees no CUDA GPU"]
    fits = False
    for number, card in enumerate(found):
        major, minor = card.capability
        lines.append(
            f"GPU {number}: {card.name}, {card.memory_gb:.0f} GB, compute capability {major}.{minor}"
        )
        for profile in PROFILES.values():
            works, why = verdict(traits, profile, card)
            fits = fits or (works and profile.name == wanted)
            mark = "*" if profile.name == wanted else " "
            lines.append(f"  {mark} {profile.name:<6} {why}; {profile.promise}")
    return fits and disk_ok, lines


def main() -> int:
    """Exit status: 0 it runs in the profile that is set, 1 it does not, 2 the settings are wrong."""
    try:
        settings = load_settings()
    except BadConfiguration as error:
        sys.stderr.write(f"gpu_node: {error}\n")
        return BAD_CONFIGURATION
    model = sys.argv[1] if len(sys.argv) > 1 else settings.model
    works, lines = report(model, settings.profile, cards())
    sys.stdout.write(
        "\n".join([*lines, "It will run." if works else "It will not run as it is set up."]) + "\n"
    )
    return FITS if works else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main())
