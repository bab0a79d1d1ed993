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
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from gpu_node import catalog
from gpu_node.catalog import GB, PROFILES, Profile, Traits
from gpu_node.engine.quantization import FP8_CAPABILITY
from gpu_node.settings import EMBEDDED, BadConfiguration, NodeSettings, load_settings

FITS, DOES_NOT_FIT, BAD_CONFIGURATION = 0, 1, 2


@dataclass(frozen=True)
class Card:
    """One GPU. `free_gb`: what no process has taken of its memory. `capability`: (9, 0) for Hopper."""

    name: str
    memory_gb: float
    free_gb: float
    capability: tuple[int, int]


def cards() -> list[Card]:
    """List the GPUs that torch sees."""
    found = []
    for index in range(torch.cuda.device_count()):
        card, memory = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
        free_gb, memory_gb = (size / GB for size in memory)
        found.append(Card(card.name, memory_gb, free_gb, (card.major, card.minor)))
    return found


def verdict(traits: Traits, profile: Profile, card: Card) -> tuple[bool, str]:
    """Return whether the card runs the model in this profile, and for people how, or why not."""
    if card.capability < (8, 0) and traits.dtypes[0] == "bfloat16":  # Ampere is the first that has it
        return False, "no: the card has no bfloat16, and float16 gives black frames"
    if profile.quantization == "fp8" and card.capability < FP8_CAPABILITY:
        return False, "no: the card has no 8-bit floats (Ada, Hopper or newer have)"
    place = catalog.choose_placement(traits, profile, free_gb=card.free_gb)
    if place is None:
        least = f"no: it takes at least {_least_gb(traits, profile):.0f} GB"
        light = replace(profile, step_cache="none")
        if catalog.choose_placement(traits, light, free_gb=card.free_gb):
            least += f", {_least_gb(traits, light):.0f} GB with GPU_NODE_STEP_CACHE=none"
        return False, least
    ways = ["text encoder on the CPU"] * (not place.text_on_gpu) + ["decoding in tiles"] * place.tiled
    return True, f"yes: about {place.peak_gb:.0f} GB" + (f" ({', '.join(ways)})" if ways else "")


def _least_gb(traits: Traits, profile: Profile) -> float:
    return catalog.peak_gb(traits, profile, text_on_gpu=False, tiled=True)


def disk_verdict(traits: Traits, model: str) -> tuple[bool, str]:
    """Return whether the weights are there, or fit where they would be kept, and for people where."""
    if Path(model).is_dir():
        return _folder_verdict(Path(model))
    cache = Path(constants.HF_HUB_CACHE)
    if is_downloaded(traits):
        return True, f"downloaded already, in {cache}"
    nearest = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free / GB
    text = f"{traits.download_gb:.0f} GB to download into {cache}, where {free:.0f} GB are free"
    return free > traits.download_gb + 1, text


def is_downloaded(traits: Traits) -> bool:
    """Return True when the published weights are on this machine."""
    folder = repo_folder_name(repo_id=traits.hub_id, repo_type="model")
    return any(Path(constants.HF_HUB_CACHE, folder).glob("snapshots/*/model_index.json"))


def _folder_verdict(folder: Path) -> tuple[bool, str]:
    if not (folder / "model_index.json").is_file():
        return False, f"the folder {folder} has no model_index.json, so it is no model"
    return True, f"a folder on this machine: {folder}"


def report(settings: NodeSettings, found: list[Card]) -> tuple[bool, list[str]]:
    """Return whether the node can run as it is set up, and line by line what an operator wants to know."""
    model, traits = settings.model, catalog.find(settings.model)
    lines = [f"torch {torch.__version__}, diffusers {importlib.metadata.version('diffusers')}"]
    if model in EMBEDDED:
        return True, [*lines, f"{model}: runs anywhere, on the CPU; nothing is downloaded"]
    if traits is None:
        works, text = _unknown_verdict(model)
        return works, [*lines, f"{model}: {text}"]
    length = f"{traits.frames} frames of {traits.width}x{traits.height}"
    lines.append(f"{traits.name}: {length}" + (", from a picture" if traits.takes_image else ""))
    disk_ok, text = disk_verdict(traits, model)
    lines.append(f"disk: {'yes' if disk_ok else 'no'}: {text}")
    works, about_cards = _cards_verdict(traits, settings, found)
    return works and disk_ok, [*lines, *about_cards]


def _unknown_verdict(model: str) -> tuple[bool, str]:
    """Judge a name that is no published CogVideoX: another model's hub id or folder may be one all the same."""
    if Path(model).is_dir():
        works, text = _folder_verdict(Path(model))
        return works, f"{text}; whether it fits is seen when it is loaded" if works else text
    if "/" in model and not Path(model).is_absolute():
        return True, "not a published CogVideoX; whether it is one, and fits, is seen when it is loaded"
    names = [*EMBEDDED, *(known.name.removeprefix("CogVideoX").lstrip("-") for known in catalog.PUBLISHED)]
    return False, f"there is no such folder, and no model of this name; by name there are {', '.join(names)}"


def _cards_verdict(traits: Traits, settings: NodeSettings, found: list[Card]) -> tuple[bool, list[str]]:
    """Return whether it runs on the card that is set, and what each card can do in each profile."""
    if settings.device == "cpu":
        if settings.levers.quantization == "fp8":
            return False, ["CPU: no: 8-bit floats need a GPU"]
        return True, ["CPU: yes, as GPU_NODE_DEVICE says; expect hours for one clip"]
    profiles = list((PROFILES | {settings.profile: settings.levers}).values())
    marked = {
        profile.name: f"  {'*' if profile.name == settings.profile else ' '} {profile.name:<6}"
        for profile in profiles
    }
    if not found:
        why = "torch sees no CUDA GPU" if torch.version.cuda else "this torch is built without CUDA"
        lines = [f"GPU: no: {why}. What a card needs:"]
        for profile in profiles:
            saves = profile.saves_memory
            best = catalog.peak_gb(traits, profile, text_on_gpu=not saves, tiled=saves)
            needs = f"{_least_gb(traits, profile):.0f} GB at least, {best:.0f} GB for full speed"
            lines.append(f"{marked[profile.name]} {needs}; {profile.promise}")
        return False, lines
    wanted, works, lines = int(settings.device.partition(":")[2] or 0), False, []
    for number, card in enumerate(found):
        major, minor = card.capability
        lines.append(
            f"GPU {number}: {card.name}, {card.memory_gb:.0f} GB, {card.free_gb:.0f} GB free, "
            f"compute capability {major}.{minor}"
        )
        for profile in profiles:
            fits, why = verdict(traits, profile, card)
            works = works or (fits and number == wanted and profile.name == settings.profile)
            lines.append(f"{marked[profile.name]} {why}; {profile.promise}")
    if wanted >= len(found):
        lines.append(f"GPU_NODE_DEVICE: there is no {settings.device}")
    return works, lines


def main() -> int:
    """Print the report. Exit status: 0 it runs in the profile that is set, 1 it does not, 2 the settings are wrong."""
    if len(sys.argv) > 1:
        os.environ["GPU_NODE_MODEL"] = sys.argv[1]
    try:
        settings = load_settings()
    except BadConfiguration as error:
        sys.stderr.write(f"gpu_node: {error}\n")
        return BAD_CONFIGURATION
    works, lines = report(settings, cards())
    is_known = settings.model in EMBEDDED or catalog.find(settings.model) is not None
    yes = "It will run." if is_known else "Nothing speaks against it."
    sys.stdout.write("\n".join([*lines, yes if works else "It will not run as it is set up."]) + "\n")
    return FITS if works else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main())
