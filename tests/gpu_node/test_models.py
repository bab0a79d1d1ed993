"""The tiny model's building, and folders in the format in which CogVideoX is published."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import sentencepiece

from tests.gpu_node.client import Client
from tests.node_process import REPOSITORY, NodeProcess
from tests.preforked import forked_command

BUILD = """
import sys, pathlib
from gpu_node.demo_model.architecture import model_folder
print(model_folder("tiny-random", pathlib.Path(sys.argv[1])))
"""


def start_building(cache: Path, scripts: Path) -> "subprocess.Popen[str]":
    (scripts / "build_model.py").write_text(BUILD)
    command = [*forked_command("build_model"), str(cache)]
    return subprocess.Popen(
        command,
        cwd=scripts,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, built by two processes at the same time."""
    cache = tmp_path_factory.mktemp("together")
    scripts = tmp_path_factory.mktemp("scripts")
    builders = [start_building(cache, scripts) for _ in range(2)]
    outputs = [builder.communicate(timeout=150) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    return Path(outputs[0][0].strip())


def test_two_processes_that_build_at_once_leave_one_whole_model(tiny_folder: Path) -> None:
    assert list(tiny_folder.parent.iterdir()) == [tiny_folder]
    assert {"model_index.json", "vae/config.json", "transformer/config.json"} <= set(files_of(tiny_folder))


def test_it_is_built_the_same_everywhere(tiny_folder: Path, session_node: NodeProcess) -> None:
    other = next((session_node.folder / "models").iterdir())

    assert files_of(other) == files_of(tiny_folder)


def test_a_folder_is_loaded_like_the_tiny_model(tiny_folder: Path, tmp_path: Path, client: Client) -> None:
    """Published folders have T5's spiece.model and no tokenizer.json; a CPU can be forced for small models."""
    folder = tmp_path / "CogVideoX-mini"
    shutil.copytree(tiny_folder, folder)
    write_sentencepiece_model(folder / "tokenizer" / "spiece.model")
    (folder / "tokenizer" / "tokenizer.json").unlink()

    env = {"GPU_NODE_MODEL": str(folder), "GPU_NODE_DEVICE": "cpu"}
    with NodeProcess.start(tmp_path / "node", env=env) as node:
        health = node.health()
        clip = Client(node).make("a red ball")

        assert (health["backend"], health["model"]) == ("CogVideoX-mini", "CogVideoX-mini")
        assert str(tmp_path) not in str(health), "/health needs no key, so it shows no paths"
        assert clip != client.make("a red ball"), "another tokenizer is another clip"
        assert clip == Client(node).make("a red ball")


def write_sentencepiece_model(path: Path) -> None:
    """A model of T5's kind with few words: pad 0, end 1, unknown 2, no beginning."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red ball moves to the right", "a blue star stands still"] * 50),
        model_prefix=str(path.with_suffix("")),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
