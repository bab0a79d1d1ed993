"""Where an embedded model lies on disk."""

import shutil
import tempfile
from pathlib import Path

from gpu_node.tiny.random_weights import build_pipeline

TRAINED = Path(__file__).parent / "weights"
RECIPE = "tiny-random-1"  # a new name whenever random_weights.py changes, so that an old copy is not used


def model_folder(model: str, cache_dir: Path) -> Path:
    """The folder for `CogVideoXPipeline.from_pretrained`: `tiny` is shipped, `tiny-random` is built on first use.

    Safe for several processes at once: each builds in a folder of its own, and the first rename wins.
    """
    if model == "tiny":
        return TRAINED
    folder = cache_dir / RECIPE
    if not (folder / "model_index.json").is_file():
        cache_dir.mkdir(parents=True, exist_ok=True)
        _build_into(folder)
    return folder


def _build_into(folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the model from a node run by another user
        build_pipeline().save_pretrained(scratch)
        scratch.rename(folder)
    except OSError:
        if not (folder / "model_index.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
