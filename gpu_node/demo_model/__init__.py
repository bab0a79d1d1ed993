"""The embedded models: `tiny`, which draws what its small vocabulary says, and `tiny-random` for tests.

Both are made of the classes that CogVideoX-5B uses. docs/embedded-model.md shows what the first can do.
"""

import shutil
import tempfile
from pathlib import Path

from gpu_node.demo_model import architecture

TRAINED = Path(__file__).parent / "weights"
RECIPE = "tiny-random-1"  # a new name whenever `random_pipeline` changes, so that an old copy is not used


def model_folder(model: str, cache_dir: Path) -> Path:
    """Return the folder for `CogVideoXPipeline.from_pretrained`: `tiny` is shipped, `tiny-random` built on first use.

    Safe for several processes at once: each builds in a folder of its own, and the first rename wins.
    """
    if model == "tiny":
        return TRAINED
    folder = cache_dir / RECIPE
    if (folder / "model_index.json").is_file():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache_dir))
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the model from a node run by another user
        architecture.random_pipeline().save_pretrained(scratch)
        scratch.rename(folder)
    except OSError:
        if not (folder / "model_index.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
