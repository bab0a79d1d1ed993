"""Makes of the checkpoints the folder that is shipped."""

import string
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline
from transformers import T5Tokenizer

from gpu_node.tiny import architecture
from gpu_node.tiny.training.transformer import TextToLatents
from gpu_node.tiny.vocabulary import SYNONYMS


def export(*, checkpoints: Path, to: Path, start: Path | None = None) -> None:
    """Write the averaged weights as float16 in the layout of `save_pretrained`.

    `start`: a folder of weights, for the parts that have no checkpoint because they were not trained.
    """
    trained = load(checkpoints, start)
    trained.to(dtype=torch.float16)
    trained.save_pretrained(to, safe_serialization=True)


def load(checkpoints: Path, start: Path | None = None) -> CogVideoXPipeline:
    """The pipeline with the averaged weights, in float32; synonyms are given the embedding of their word."""
    made = architecture.pipeline()
    if start is not None:
        _begin_with(made, start)
    parts = {
        "transformer": TextToLatents(made.text_encoder, made.transformer),
        "decoder": made.vae.decoder,
        "encoder": made.vae.encoder,
    }
    for name, part in parts.items():
        file = checkpoints / f"{name}.pt"
        if start is None or file.is_file():
            part.load_state_dict(_average(file))
    _teach_synonyms(made.tokenizer, made.text_encoder.shared.weight)
    return made


def _begin_with(made: CogVideoXPipeline, start: Path) -> None:
    """Its weights alone: the files of settings are written anew, and name no folder that they once came from."""
    begun = CogVideoXPipeline.from_pretrained(start, dtype=torch.float32)
    for name in ("text_encoder", "transformer", "vae"):
        getattr(made, name).load_state_dict(getattr(begun, name).state_dict())


def _average(file: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)["average"][
        "weights"
    ]
    return weights


@torch.no_grad()
def _teach_synonyms(tokenizer: T5Tokenizer, embeddings: torch.Tensor) -> None:
    for word, synonyms in SYNONYMS.items():
        for synonym in synonyms:
            embeddings[_token(tokenizer, synonym)] = embeddings[_token(tokenizer, word)]
    for mark in string.punctuation:
        embeddings[tokenizer.convert_tokens_to_ids(mark)] = embeddings[tokenizer.unk_token_id]


def _token(tokenizer: T5Tokenizer, word: str) -> int:
    token: int = tokenizer.convert_tokens_to_ids(f"▁{word}")
    assert token != tokenizer.unk_token_id, word
    return token
