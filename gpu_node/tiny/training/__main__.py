"""`python -m gpu_node.tiny.training`, called by `make train-tiny`: trains the three parts and writes the weights.

Stopped at any time, it goes on from its last checkpoints when it is started again.
"""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gpu_node.settings import LOG_FORMAT
from gpu_node.tiny.training import transformer, vae
from gpu_node.tiny.training.export import export
from gpu_node.tiny.training.run import Run

log = logging.getLogger(__name__)
PARTS: dict[str, Callable[..., Run]] = {
    "transformer": transformer.train,
    "decoder": partial(vae.train, "decoder"),
    "encoder": partial(vae.train, "encoder"),
}


def main() -> int:
    """Train; the exit status is 1 when a part failed."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part is None:
        return _train_all(options)
    os.nice(5)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    PARTS[options.part](
        folder=options.folder, seconds=options.minutes * 60, device=device, start=options.start
    )
    return 0


def _train_all(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "gpu_node.tiny.training", "--folder", str(options.folder)]
    command += ["--minutes", str(options.minutes), "--threads", str(options.threads)]
    if options.start is not None:
        command += ["--start", str(options.start)]
    running = [subprocess.Popen([*command, "--part", part]) for part in PARTS]
    try:
        statuses = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    if any(statuses):
        return 1
    weights = options.folder / "weights"
    export(checkpoints=options.folder, to=weights)
    log.info(
        "the weights are in %s; python -m gpu_node.tiny.score --model %s examines them", weights, weights
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_node.tiny.training", description=main.__doc__)
    parser.add_argument("--part", choices=PARTS, help="only this one, in this process")
    parser.add_argument(
        "--minutes", type=float, default=120, help="for all; more than before prolongs a training"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".data/tiny-training"), help="checkpoints, curves, weights"
    )
    parser.add_argument("--start", type=Path, help="weights to begin with, such as gpu_node/tiny/weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each part")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
