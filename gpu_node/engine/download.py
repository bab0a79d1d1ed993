"""The files of a model: fetched from the Hugging Face hub with a progress that people can read, and told complete."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from huggingface_hub import errors, hf_hub_download, snapshot_download
from huggingface_hub.utils.tqdm import tqdm

from gpu_node.catalog import GB
from gpu_node.engine.errors import ModelUnavailable

Report: TypeAlias = Callable[[str], None]
INDEX = "model_index.json"  # names the parts, each a folder
ENDINGS = ("json", "safetensors", "model", "txt")  # no pickles
# What a part has beside its configuration, where its weights are not in shards.
PROOF = {"scheduler": {"scheduler_config.json"}, "tokenizer": {"spiece.model", "tokenizer.json"}}
WEIGHTS = {"diffusion_pytorch_model.safetensors", "model.safetensors"}
NOT_THERE = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
REPORT_SECONDS = 2.0


def fetch(model: str, revision: str, report: Report) -> Path:
    """Return the folder with the model's files, named by the commit; download what is not there yet.

    Raises ModelUnavailable where the hub says no; any other error is the network's or the disk's, and may pass.
    """
    try:
        index = Path(hf_hub_download(model, INDEX, revision=revision))
        wanted = [f"{part}/*.{ending}" for part in _parts(index) for ending in ENDINGS]
        snapshot_download(model, revision=index.parent.name, allow_patterns=wanted, tqdm_class=_bar(report))
    except errors.GatedRepoError as error:
        what = "accept the terms on its page, and set HF_TOKEN to a token of that account"
        raise ModelUnavailable(f"The hub does not give {model} to everyone: {what}.") from error
    except (*NOT_THERE, errors.HFValidationError) as error:
        raise ModelUnavailable(f"The hub has no {model} with {INDEX} at {revision}, or hides it.") from error
    return index.parent


def missing_parts(folder: Path) -> list[str]:
    """Return the parts of a model that lack files; none when it is complete. Half a file has another name."""
    try:
        return [part for part in _parts(folder / INDEX) if not _is_complete(folder / part)]
    except (OSError, ValueError):
        return [INDEX]


def _parts(index: Path) -> list[str]:
    kinds = json.loads(index.read_text())
    return [name for name, kind in kinds.items() if isinstance(kind, list) and kind[0]]


def _is_complete(part: Path) -> bool:
    files = {file.name for file in part.glob("*") if file.is_file()}
    indexes = [json.loads((part / name).read_text()) for name in files if name.endswith(".index.json")]
    shards = {shard for index in indexes for shard in index["weight_map"].values()}
    has_config = any(name.endswith("config.json") for name in files)
    return has_config and shards <= files and bool(files & PROOF.get(part.name, shards or WEIGHTS))


def _bar(report: Report) -> type[tqdm]:
    """Make the class of progress bars that draw nothing, and report the bytes of all files together."""
    reported_at = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal reported_at
            with self.get_lock():  # every file has a thread
                self.n += n or 0
                if self.counts_bytes and self.n and time.monotonic() - reported_at > REPORT_SECONDS:
                    reported_at = time.monotonic()
                    report(f"downloading {self.n / GB:.1f} of {self.total / GB:.1f} GB")

    return Bar
