"""Where the tiny model lies on disk: built on first use, then only found."""

import shutil
import tempfile
from pathlib import Path

from gpu_node.tiny.build import build_pipeline

RECIPE = "tiny-random-1"  # a new name whenever build.py changes, so that an old copy is not used


def model_folder(cache_dir: Path) -> Path:
    """The tiny model's folder, for `CogVideoXPipeline.from_pretrained`. Builds it on first use.

    Safe for several processes at once: each builds in a folder of its own, and the first rename wins.
    """
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
