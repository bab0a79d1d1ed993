"""`python -m gpu_node --check [MODEL]`: can this card and this disk run a model, and in which profile?

It downloads nothing. It runs in a process of its own that imports torch, which the serving process never does.
"""

import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache

from gpu_node import catalog
from gpu_node.catalog import GB, PROFILES, Profile, Traits
from gpu_node.engine.download import INDEX, missing_parts
from gpu_node.engine.quantization import FP8_CAPABILITY
from gpu_node.settings import EMBEDDED, BadConfiguration, NodeSettings, load_settings

FITS, DOES_NOT_FIT, BAD_CONFIGURATION = 0, 1, 2
DRIVER, MEMORY = Path("/proc/driver/nvidia/version"), Path("/proc/meminfo")
# By CUDA's major version: docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}


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
        return False, f"no: it takes at least {_least_gb(traits, profile):.0f} GB"
    ways = ["text encoder on the CPU"] * (not place.text_on_gpu) + ["decoding in tiles"] * place.tiled
    return True, f"yes: about {place.peak_gb:.0f} GB" + (f" ({', '.join(ways)})" if ways else "")


def _least_gb(traits: Traits, profile: Profile) -> float:
    return catalog.peak_gb(traits, profile, text_on_gpu=False, tiled=True)


def disk_verdict(traits: Traits, model: str, revision: str) -> tuple[bool, str]:
    """Return whether the weights are there, or fit where they would be kept, and for people where."""
    if Path(model).is_dir():
        return _folder_verdict(Path(model))
    cache = Path(constants.HF_HUB_CACHE)
    if is_downloaded(model, revision):
        return True, f"downloaded already, in {cache}"
    nearest = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free / GB
    text = f"{traits.download_gb:.0f} GB to download into {cache}, where {free:.0f} GB are free"
    return free > traits.download_gb + 1, text


def is_downloaded(model: str, revision: str) -> bool:
    """Return True when all files of the published model are on this machine, at this revision."""
    index = try_to_load_from_cache(catalog.hub_id(model), INDEX, revision=revision)
    return isinstance(index, str) and not missing_parts(Path(index).parent)


def _folder_verdict(folder: Path) -> tuple[bool, str]:
    if missing := missing_parts(folder):
        return False, f"the folder {folder} is no whole model: it has no complete {', '.join(missing)}"
    return True, f"a folder on this machine: {folder}"


def why_no_gpu() -> str:
    """Say why torch sees no GPU, and what it needs."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this torch is built without CUDA"
    oldest = OLDEST_DRIVERS.get(cuda.partition(".")[0], 0)
    found = re.search(r"Module.*?\s(\d+)\.\d", DRIVER.read_text()) if DRIVER.is_file() else None
    if found and int(found[1]) >= oldest:
        return f"torch sees none, though the NVIDIA driver {found[1]} is loaded"
    return (
        f"the NVIDIA driver is {found[1] if found else 'not loaded'}, and this torch, built for CUDA {cuda}, needs "
        f"{oldest} or newer. Update the driver, or install a torch for an older CUDA (download.pytorch.org)"
    )


def _machine_verdict(traits: Traits, settings: NodeSettings) -> tuple[bool, list[str]]:
    """Return whether memory suffices for loading, and whether Triton can compile if it must."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB  # no better is known, but on Linux
    if MEMORY.is_file():
        kilobytes = re.findall(r"^(?:MemAvailable|SwapFree): +(\d+) kB", MEMORY.read_text(), re.MULTILINE)
        free = sum(map(int, kilobytes)) * 1024 / GB
    needed = traits.transformer_gb + catalog.TEXT_ENCODER_GB + catalog.VAE_GB  # all parts, in 16 bits
    has_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    has_headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    missing = " and ".join(["gcc"] * (not has_compiler) + ["python3-dev"] * (not has_headers))
    words = f"loading takes about {needed:.0f} GB, and {free:.0f} GB are free, swap included"
    compiles = f"no: {missing} missing; slower, the same clips" if missing else "yes"
    lines = [f"RAM: {'yes' if free > needed else 'no'}: {words}", f"compiling: {compiles}"]
    return free > needed and not (missing and settings.compile == "on"), lines


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
    lines.append(f"license of the weights: {traits.license}")
    disk_ok, text = disk_verdict(traits, model, settings.known_revision)
    lines.append(f"disk: {'yes' if disk_ok else 'no'}: {text}")
    machine_ok, about_machine = _machine_verdict(traits, settings)
    works, about_cards = _cards_verdict(traits, settings, found)
    return works and disk_ok and machine_ok, [*lines, *about_machine, *about_cards]


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
        lines = [f"GPU: no: {why_no_gpu()}. What a card needs:"]
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
