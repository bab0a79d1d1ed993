"""The shipped demonstration model, over HTTP: it draws its prompt."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Tokenizer

from benchmarks.demo_scorer import Seen, look
from gpu_node.demo_model import vocabulary
from gpu_node.demo_model.architecture import TRAINED
from tests.gpu_node.client import Client, frames_of
from tests.node_process import NodeProcess

MEGABYTES = 15


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("demonstration")
    with NodeProcess.start(folder, env={"GPU_NODE_MODEL": "tiny"}) as node:
        yield Client(node)


def seen_in(client: Client, prompt: str, **fields: object) -> Seen:
    settings = {"size": None, "num_frames": 17, "num_inference_steps": 20} | fields
    frames = frames_of(client.make(prompt, **settings))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return look(torch.from_numpy(frames).permute(3, 0, 1, 2) / 255)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("prompt", "frames", "colour", "motion"),
    [
        ("A red ball moving right on a white background", 17, "red", "right"),
        ("A golden star bounces over the ocean, a cinematic masterpiece", 17, "yellow", "bouncing"),
        ("a purple cube growing on green grass", 17, "purple", "growing"),
        ("A green triangle falls at night", 49, "green", "down"),
    ],
)
def test_it_draws_its_prompt(
    demonstration: Client, prompt: str, frames: int, colour: str, motion: str
) -> None:
    seen = seen_in(demonstration, prompt, num_frames=frames)
    assert (seen.colour, seen.motion) == (colour, motion), seen


def test_it_makes_its_own_size_only_and_keeps_to_its_own_guidance(demonstration: Client) -> None:
    refused = demonstration.post("/v1/videos", json={"prompt": "a red ball", "size": "96x64"})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "size: tiny makes 144x96 only"
    job = demonstration.finish(demonstration.create(size=None)["id"])
    assert (job["guidance_scale"], job["size"], job["model"]) == (1.75, "144x96", "tiny")


def test_the_weights_are_small_and_know_all_synonyms() -> None:
    assert sum(file.stat().st_size for file in TRAINED.rglob("*")) < MEGABYTES * 2**20
    embeddings = load_file(TRAINED / "text_encoder" / "model.safetensors")["shared.weight"]
    token = T5Tokenizer.from_pretrained(TRAINED / "tokenizer").convert_tokens_to_ids
    assert embeddings.dtype == torch.float16
    for word, synonyms in vocabulary.SYNONYMS.items():
        for synonym in synonyms:
            assert torch.equal(embeddings[token(f"▁{synonym}")], embeddings[token(f"▁{word}")])


def test_the_documentation_names_every_word() -> None:
    text = (Path(__file__).parents[2] / "docs" / "embedded-model.md").read_text()
    missing = [word for word in vocabulary.words() if f"`{word}`" not in text]
    assert missing == []
