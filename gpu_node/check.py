"""`python -m gpu_node --check [MODEL]`: can this card and this disk run a model, and in which profile?

It downloads nothing. It runs in a process of its own that imports torch, which the serving process never does.
"""

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpu_node import models, placement
from gpu_node.engine.quantization import FP8_CAPABILITY
from gpu_node.models import Traits
from gpu_node.profiles import PROFILES, Profile
from gpu_node.settings import EMBEDDED, BadConfiguration, NodeSettings, load_settings

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
    place = _place(traits, profile, card.memory_gb)
    if place is None:
        return (
            False,
            f"no: it takes at least {_least_gb(traits, profile):.0f} GB{_lighter(traits, profile, card)}",
        )
    ways = [
        "" if place.text_on_gpu else "text encoder on the CPU",
        "decoding in tiles" if place.tiled else "",
    ]
    how = ", ".join(way for way in ways if way)
    return True, f"yes: about {place.peak_gb:.0f} GB" + (f" ({how})" if how else "")


def _lighter(traits: Traits, profile: Profile, card: Card) -> str:
    """A step cache that keeps little, where that is what is missing."""
    light = replace(profile, step_cache="first_block")
    if profile.step_cache == "none" or _place(traits, light, card.memory_gb) is None:
        return ""
    return f", {_least_gb(traits, light):.0f} GB with GPU_NODE_STEP_CACHE=first_block"


def _place(traits: Traits, profile: Profile, card_gb: float) -> placement.Placement | None:
    return placement.choose(
        traits,
        saves_memory=profile.saves_memory,
        quantization=profile.quantization,
        step_cache=profile.step_cache,
        card_gb=card_gb,
    )


def _least_gb(traits: Traits, profile: Profile) -> float:
    return placement.peak_gb(
        traits,
        quantization=profile.quantization,
        step_cache=profile.step_cache,
        text_on_gpu=False,
        tiled=True,
    )


def disk_verdict(traits: Traits, model: str) -> tuple[bool, str]:
    """Whether the weights are there, or fit where they would be kept."""
    if Path(model).is_dir():
        return _folder_verdict(Path(model))
    cache = _hub_cache()
    if is_downloaded(traits):
        return True, f"downloaded already, in {cache}"
    free = shutil.disk_usage(_nearest_existing(cache)).free / GB
    words = f"{traits.download_gb:.0f} GB to download into {cache}, where {free:.0f} GB are free"
    return free > traits.download_gb + 1, words


def is_downloaded(traits: Traits) -> bool:
    """Whether the published weights are on this machine."""
    return any(_hub_cache().glob(f"models--{traits.hub_id.replace('/', '--')}/snapshots/*/model_index.json"))


def _folder_verdict(folder: Path) -> tuple[bool, str]:
    if not (folder / "model_index.json").is_file():
        return False, f"the folder {folder} has no model_index.json, so it is no model"
    return True, f"a folder on this machine: {folder}"


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def report(settings: NodeSettings, found: list[Card]) -> tuple[bool, list[str]]:
    """Whether the node can run as it is set up, and all that an operator wants to know, line by line."""
    model, traits = settings.model, models.find(settings.model)
    lines = [f"torch {torch.__version__}, diffusers {importlib.metadata.version('diffusers')}"]
    if model in EMBEDDED:
        return True, [*lines, f"{model}: runs anywhere, on the CPU; nothing is downloaded"]
    if traits is None:
        works, words = _unknown_verdict(model)
        return works, [*lines, f"{model}: {words}"]
    length = f"{traits.frames} frames of {traits.width}x{traits.height}"
    lines.append(f"{traits.name}: {length}" + (", from a picture" if traits.takes_image else ""))
    disk_ok, words = disk_verdict(traits, model)
    lines.append(f"disk: {'yes' if disk_ok else 'no'}: {words}")
    works, about_cards = _cards_verdict(traits, settings, found)
    return works and disk_ok, [*lines, *about_cards]


def _unknown_verdict(model: str) -> tuple[bool, str]:
    """Of a name that is no published CogVideoX: another model's hub id or folder may be one all the same."""
    if Path(model).is_dir():
        works, words = _folder_verdict(Path(model))
        return works, f"{words}; whether it fits is seen when it is loaded" if works else words
    if "/" in model and not Path(model).is_absolute():
        return True, "not a published CogVideoX; whether it is one, and fits, is seen when it is loaded"
    names = [*EMBEDDED, *(known.name.removeprefix("CogVideoX").lstrip("-") for known in models.PUBLISHED)]
    return False, f"there is no such folder, and no model of this name; by name there are {', '.join(names)}"


def _cards_verdict(traits: Traits, settings: NodeSettings, found: list[Card]) -> tuple[bool, list[str]]:
    """Whether it runs on the card that is set, and what each card can do."""
    if settings.device == "cpu":
        return _cpu_verdict(settings)
    profiles = _profiles(settings)
    if not found:
        why = "torch sees no CUDA GPU" if torch.version.cuda else "this torch is built without CUDA"
        lines = [f"GPU: no: {why}. What a card needs:"]
        for profile in profiles:
            best = placement.peak_gb(
                traits,
                quantization=profile.quantization,
                step_cache=profile.step_cache,
                text_on_gpu=not profile.saves_memory,
                tiled=profile.saves_memory,
            )
            needs = f"{_least_gb(traits, profile):.0f} GB at least, {best:.0f} GB for full speed"
            lines.append(f"  {_mark(profile, settings)} {profile.name:<6} {needs}; {profile.promise}")
        return False, lines
    wanted, works, lines = int(settings.device.partition(":")[2] or 0), False, []
    for number, card in enumerate(found):
        major, minor = card.capability
        lines.append(
            f"GPU {number}: {card.name}, {card.memory_gb:.0f} GB, compute capability {major}.{minor}"
        )
        for profile in profiles:
            fits, why = verdict(traits, profile, card)
            works = works or (fits and number == wanted and profile.name == settings.profile)
            lines.append(f"  {_mark(profile, settings)} {profile.name:<6} {why}; {profile.promise}")
    if wanted >= len(found):
        lines.append(f"GPU_NODE_DEVICE: there is no {settings.device}")
    return works, lines


def _profiles(settings: NodeSettings) -> list[Profile]:
    """All profiles; the one that is set with what GPU_NODE_QUANTIZATION and GPU_NODE_STEP_CACHE change in it."""
    engine = settings.engine
    wanted = replace(
        PROFILES[settings.profile], quantization=engine.quantization, step_cache=engine.step_cache
    )
    return [wanted if profile.name == wanted.name else profile for profile in PROFILES.values()]


def _mark(profile: Profile, settings: NodeSettings) -> str:
    return "*" if profile.name == settings.profile else " "


def _cpu_verdict(settings: NodeSettings) -> tuple[bool, list[str]]:
    if settings.engine.quantization == "fp8":
        return False, ["CPU: no: 8-bit floats need a GPU"]
    return True, ["CPU: yes, as GPU_NODE_DEVICE says; expect hours for one clip"]


def main() -> int:
    """Exit status: 0 it runs in the profile that is set, 1 it does not, 2 the settings are wrong."""
    if len(sys.argv) > 1:
        os.environ["GPU_NODE_MODEL"] = sys.argv[1]
    try:
        settings = load_settings()
    except BadConfiguration as error:
        sys.stderr.write(f"gpu_node: {error}\n")
        return BAD_CONFIGURATION
    works, lines = report(settings, cards())
    is_known = settings.model in EMBEDDED or models.find(settings.model) is not None
    yes = "It will run." if is_known else "Nothing speaks against it."
    sys.stdout.write("\n".join([*lines, yes if works else "It will not run as it is set up."]) + "\n")
    return FITS if works else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main())
