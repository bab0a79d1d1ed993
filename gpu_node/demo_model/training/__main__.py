"""`python -m gpu_node.demo_model.training`, called by `make train-tiny`: trains the three parts and writes the weights.

Stopped at any time, it goes on from its last checkpoints when it is started again.
"""

import argparse
import logging
import multiprocessing
import string
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline

from gpu_node.demo_model import architecture
from gpu_node.demo_model.training import transformer, vae
from gpu_node.demo_model.training.optim import Run, train_part
from gpu_node.demo_model.vocabulary import SYNONYMS
from gpu_node.settings import LOG_FORMAT

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
    how = {name: getattr(options, name) for name in ("folder", "minutes", "threads", "start")}
    processes = multiprocessing.get_context("spawn")
    running = [
        processes.Process(target=train_part, args=(PARTS[part],), kwargs=how)
        for part in options.part or PARTS
    ]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join()
    finally:
        for process in running:
            process.terminate()
    if any(process.exitcode for process in running):
        return 1
    untrained = [part for part in PARTS if not (options.folder / f"{part}.pt").is_file()]
    if untrained and options.start is None:
        log.info("no weights are written yet: %s not trained", " and ".join(untrained))
        return 0
    weights = options.folder / "weights"
    export(checkpoints=options.folder, to=weights, start=options.start)
    command = f"python -m benchmarks.demo_model --model {weights}"
    log.info("the weights are in %s; %s examines them", weights, command)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_node.demo_model.training", description=main.__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--minutes", type=float, default=120, help="for all; more than before prolongs a training"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".data/tiny-training"), help="checkpoints, curves, weights"
    )
    parser.add_argument(
        "--start", type=Path, help="weights to begin with, such as gpu_node/demo_model/weights"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each part")
    return parser.parse_args()


def export(*, checkpoints: Path, to: Path, start: Path | None = None) -> None:
    """Write the averaged weights as float16 in the layout of `save_pretrained`; synonyms get their word's embedding.

    `start`: a folder of weights, for the parts that have no checkpoint because they were not trained. Only its weights
    are taken: the files of settings are written anew, and name no folder that they once came from.
    """
    made = architecture.pipeline()
    if start is not None:
        begun = CogVideoXPipeline.from_pretrained(start, dtype=torch.float32)
        for name in ("text_encoder", "transformer", "vae"):
            getattr(made, name).load_state_dict(getattr(begun, name).state_dict())
    parts = {
        "transformer": transformer.TextToLatents(made.text_encoder, made.transformer),
        "decoder": made.vae.decoder,
        "encoder": made.vae.encoder,
    }
    for name, part in parts.items():
        file = checkpoints / f"{name}.pt"
        if start is None or file.is_file():
            part.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["average"])
    with torch.no_grad():
        _teach_synonyms(made)
    made.to(dtype=torch.float16)
    made.save_pretrained(to, safe_serialization=True)


def _teach_synonyms(pipe: CogVideoXPipeline) -> None:
    embeddings, unknown = pipe.text_encoder.shared.weight, pipe.tokenizer.unk_token_id

    def token(word: str) -> int:
        found: int = pipe.tokenizer.convert_tokens_to_ids(f"▁{word}")
        assert found != unknown, word
        return found

    for word, synonyms in SYNONYMS.items():
        for synonym in synonyms:
            embeddings[token(synonym)] = embeddings[token(word)]
    for sign in string.punctuation:
        embeddings[pipe.tokenizer.convert_tokens_to_ids(sign)] = embeddings[unknown]


if __name__ == "__main__":
    sys.exit(main())
