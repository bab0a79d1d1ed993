"""`python -m gpu_node.tiny.training`, called by `make train-tiny`: trains the three parts and writes the weights.

Stopped at any time, it goes on from its last checkpoints when it is started again.
"""

import argparse
import logging
import multiprocessing
import sys
from pathlib import Path

from gpu_node.settings import LOG_FORMAT
from gpu_node.tiny.training.export import export
from gpu_node.tiny.training.parts import PARTS, train

log = logging.getLogger(__name__)


def main() -> int:
    """Train; the exit status is 1 when a part failed."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    options.folder.mkdir(parents=True, exist_ok=True)
    how = {name: getattr(options, name) for name in ("folder", "minutes", "threads", "start")}
    processes = multiprocessing.get_context("spawn")
    running = [processes.Process(target=train, args=(part,), kwargs=how) for part in options.part or PARTS]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join()
    finally:
        for process in running:
            process.terminate()
    return (
        1 if any(process.exitcode for process in running) else _write_weights(options.folder, options.start)
    )


def _write_weights(folder: Path, start: Path | None) -> int:
    untrained = [part for part in PARTS if not (folder / f"{part}.pt").is_file()]
    if untrained and start is None:
        log.info("no weights are written yet: %s not trained", " and ".join(untrained))
        return 0
    weights = folder / "weights"
    export(checkpoints=folder, to=weights, start=start)
    log.info(
        "the weights are in %s; python -m gpu_node.tiny.score --model %s examines them", weights, weights
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_node.tiny.training", description=main.__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be repeated")
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
