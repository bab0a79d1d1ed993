"""`python -m gpu_node --check`: what an operator is told before anything is downloaded."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpu_node import catalog, check
from gpu_node.catalog import GB, PROFILES
from gpu_node.check import Card
from gpu_node.engine import loading
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.settings import EngineOptions, NodeSettings
from tests.node_process import free_port, node_environment

H200 = Card(name="NVIDIA H200", memory_gb=150.1, free_gb=149.5, capability=(9, 0))
A100 = Card(name="NVIDIA A100", memory_gb=42.4, free_gb=42.0, capability=(8, 0))
RTX_4090 = Card(name="NVIDIA GeForce RTX 4090", memory_gb=25.4, free_gb=24.9, capability=(8, 9))
A4000 = Card(name="NVIDIA RTX A4000", memory_gb=16.8, free_gb=16.4, capability=(8, 6))
T4 = Card(name="Tesla T4", memory_gb=15.6, free_gb=15.4, capability=(7, 5))
BUSY_H200 = replace(H200, free_gb=14.0)
CARDS = [H200, A100, RTX_4090, A4000, T4, BUSY_H200]


@pytest.mark.parametrize(
    ("model", "card", "answers"),
    [
        ("5B", H200, {"exact": "yes", "fast": "yes", "memory": "yes"}),
        ("5B", A100, {"exact": "yes", "fast": "no: the card has no 8-bit floats", "memory": "yes"}),
        ("5B", RTX_4090, {"exact": "yes: about 22 GB (text encoder on the CPU)", "memory": "yes"}),
        ("5B", BUSY_H200, {"exact": "no: it takes at least 16 GB", "memory": "yes: about 11 GB"}),
        ("5B", RTX_4090, {"fast": "yes: about 18 GB (text encoder on the CPU)"}),
        (
            "5B",
            A4000,
            {"fast": "no", "memory": "yes: about 11 GB (text encoder on the CPU, decoding in tiles)"},
        ),
        ("5B", T4, {"exact": "no: the card has no bfloat16", "memory": "no: the card has no bfloat16"}),
        ("2B", T4, {"exact": "yes", "fast": "no"}),
        ("1.5-5B", RTX_4090, {"exact": "yes: about 20 GB (text encoder on the CPU, decoding in tiles)"}),
    ],
)
def test_each_profile_is_judged_for_the_card(model: str, card: Card, answers: dict[str, str]) -> None:
    traits = catalog.find(model)
    assert traits is not None
    for name, beginning in answers.items():
        works, words = check.verdict(traits, PROFILES[name], card)  # type: ignore[index]
        assert words.startswith(beginning), (name, words)
        assert works is words.startswith("yes")


@pytest.mark.parametrize("model", ["5B", "2B", "1.5-5B"])
@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.name}, {card.free_gb:.0f} GB free")
def test_the_node_decides_as_the_check_does(model: str, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory that is free when it loads; what another process has may come free, and is tried again."""
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda _: (round(card.free_gb * GB), round(card.memory_gb * GB))
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card.name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = SimpleNamespace(name=card.name, major=card.capability[0], minor=card.capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    assert check.cards() == [card]

    for given in (
        {},
        {"dtype": "float32"},
        {"profile": "memory"},
        {"profile": "fast", "quantization": "none"},
    ):
        wanted = settings(model=model, **given).engine
        told = catalog.choose_placement(wanted.traits, wanted.levers, free_gb=card.free_gb)
        if told is not None:
            assert loading._choose_placement(wanted, torch.device("cuda:0")) == told
            continue
        empty = catalog.choose_placement(wanted.traits, wanted.levers, free_gb=card.memory_gb)
        with pytest.raises(MemoryError if empty else ModelUnavailable, match=f"{card.free_gb:.0f} GB free"):
            loading._choose_placement(wanted, torch.device("cuda:0"))


def test_float32_takes_twice_as_much() -> None:
    wide, usual = settings(dtype="float32").levers, settings().levers

    needs = [catalog.peak_gb(catalog.DEFAULT, each, text_on_gpu=True, tiled=False) for each in (wide, usual)]
    assert needs[0] - catalog.SPARE_GB == pytest.approx(2 * (needs[1] - catalog.SPARE_GB), abs=0.2)


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("5B", "THUDM/CogVideoX-5b"),
        ("5b", "THUDM/CogVideoX-5b"),
        ("CogVideoX-2B", "THUDM/CogVideoX-2b"),
        ("zai-org/CogVideoX-2b", "THUDM/CogVideoX-2b"),
        ("5B-I2V", "THUDM/CogVideoX-5b-I2V"),
        ("1.5-5B", "THUDM/CogVideoX1.5-5B"),
        ("1.5-5B-I2V", "THUDM/CogVideoX1.5-5B-I2V"),
    ],
)
def test_models_go_by_short_names(name: str, hub_id: str) -> None:
    traits = catalog.find(name)

    assert traits is not None
    assert traits.hub_id == hub_id
    assert catalog.hub_id(name) == (name if "/" in name else hub_id)


@pytest.mark.parametrize("name", ["tiny", "sora", "/models/mine", "CogVideoX-7B"])
def test_other_names_are_left_as_they_are(name: str) -> None:
    assert catalog.find(name) is None
    assert catalog.hub_id(name) == name


def test_a_folder_is_no_download(tmp_path: Path) -> None:
    folder = tmp_path / "CogVideoX-5b"
    folder.mkdir()
    assert disk_verdict(str(folder))[0] is False, "an empty one is no model"
    write_model(folder)

    assert disk_verdict(str(folder)) == (True, f"a folder on this machine: {folder}")

    (folder / SHARDS[1]).unlink()
    assert disk_verdict(str(folder))[1].endswith("it has no complete text_encoder")


def disk_verdict(model: str = "5B", **given: str) -> tuple[bool, str]:
    return check.disk_verdict(catalog.DEFAULT, model, settings(model=model, **given).known_revision)


SHARDS = ["text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors"]
# As CogVideoX-5B is published, without what its files hold.
MODEL_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors.index.json",
    *SHARDS,
    "tokenizer/tokenizer_config.json",
    "tokenizer/spiece.model",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


def write_model(folder: Path) -> None:
    texts = {
        MODEL_FILES[0]: json.dumps(
            {"_class_name": "CogVideoXPipeline"}
            | {name.split("/")[0]: ["a", "b"] for name in MODEL_FILES[1:]}
        ),
        MODEL_FILES[3]: json.dumps({"weight_map": {name: Path(name).name for name in SHARDS}}),
    }
    for name in MODEL_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(texts.get(name, "{}"))


@pytest.mark.parametrize("broken", [None, *MODEL_FILES])
def test_weights_that_are_there_are_seen_unless_a_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--THUDM--CogVideoX-5b"
    write_model(repository / "snapshots" / catalog.DEFAULT.revision)
    if (
        broken is not None
    ):  # stopped halfway: the file has no name in the snapshot, or one that leads to nothing
        file = repository / "snapshots" / catalog.DEFAULT.revision / broken
        file.unlink()
        file.symlink_to(tmp_path / "blobs" / "x")
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "x.incomplete").touch()
        assert "to download" in disk_verdict()[1]
        return

    assert disk_verdict() == (True, f"downloaded already, in {tmp_path}")
    assert "to download" in disk_verdict(revision="main")[1], "another revision is another download"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(catalog.DEFAULT.revision)
    assert disk_verdict(revision="main")[0]


MEMORY = "MemTotal: 70000000 kB\nMemFree: 1000 kB\nMemAvailable: {} kB\nSwapFree: 1000000 kB\n"


@pytest.fixture(autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with memory enough, a C compiler and no NVIDIA driver."""
    folder = tmp_path_factory.mktemp("machine")
    (folder / "meminfo").write_text(MEMORY.format(60_000_000))
    (folder / "Python.h").touch()
    monkeypatch.setattr(check, "MEMORY", folder / "meminfo")
    monkeypatch.setattr(check, "DRIVER", folder / "driver")
    monkeypatch.setattr(check.sysconfig, "get_path", lambda _: str(folder))
    monkeypatch.setenv("CC", "cc")
    return folder


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
            "the NVIDIA driver is 550, and this torch, built for CUDA 13.0, needs 580 or newer. Update the driver, or",
        ),
        ("", "the NVIDIA driver is not loaded, and this torch, built for CUDA 13.0, needs 580 or newer"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
            "torch sees none, though the NVIDIA driver 580 is loaded",
        ),
    ],
)
def test_a_driver_that_is_too_old_for_torch_is_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch, driver: str, words: str
) -> None:
    monkeypatch.setattr(check.torch.version, "cuda", "13.0")
    if driver:
        (machine / "driver").write_text(driver)

    works, lines = check.report(settings(), [])

    assert not works
    assert f"GPU: no: {words}" in "\n".join(lines)


def test_what_the_machine_lacks_is_told(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "disk_verdict", lambda *_: (True, "plenty"))
    assert check.report(settings(), [H200])[0]
    monkeypatch.delenv("CC")
    monkeypatch.setattr(check.shutil, "which", lambda _: None)
    (machine / "Python.h").unlink()
    works, lines = check.report(settings(), [H200])
    assert works, "it runs uncompiled"
    assert "compiling: no: gcc and python3-dev missing; slower, the same clips" in lines
    assert not check.report(settings(compile="on"), [H200])[0]

    (machine / "meminfo").write_text(MEMORY.format(10_000_000))
    works, lines = check.report(settings(), [H200])
    assert not works
    assert "RAM: no: loading takes about 21 GB, and 11 GB are free, swap included" in lines

    (machine / "meminfo").unlink()
    assert any(line.startswith("RAM: ") for line in check.report(settings(), [H200])[1]), "on macOS, too"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "5B",
            "license of the weights: CogVideoX License: research is free; commercial use takes a free registration",
        ),
        ("1.5-5B-I2V", "license of the weights: CogVideoX License"),
        ("2B", "license of the weights: Apache-2.0"),
    ],
)
def test_the_license_of_the_weights_is_told(model: str, words: str) -> None:
    assert any(line.startswith(words) for line in check.report(settings(model=model), [H200])[1])


def test_the_size_of_the_download_is_that_of_the_files() -> None:
    sizes = {traits.name: round(traits.download_gb) for traits in catalog.PUBLISHED}
    assert sizes["CogVideoX-5B"] == 21
    assert sizes["CogVideoX1.5-5B"] == 31, "its text encoder has 32 bits"


def settings(**given: str) -> NodeSettings:
    return NodeSettings.model_validate({"model": "5B"} | given)


def test_the_report_names_the_card_and_marks_the_profile_that_is_set() -> None:
    works, lines = check.report(settings(), [RTX_4090])

    assert any("RTX 4090, 25 GB, 25 GB free, compute capability 8.9" in line for line in lines)
    assert [line for line in lines if line.startswith("  * exact  yes")]
    assert works is disk_verdict()[0]


def test_it_is_about_the_card_and_the_levers_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "disk_verdict", lambda *_: (True, "plenty"))

    def will_run(found: list[Card], **given: str) -> bool:
        return check.report(settings(**given), found)[0]

    assert will_run([T4, H200], device="cuda:1")
    assert not will_run([T4, H200]), "the first is taken unless told otherwise"
    assert not will_run([H200], device="cuda:1")
    assert will_run([RTX_4090], profile="fast")
    assert not will_run([RTX_4090], profile="fast", step_cache="faster_cache"), "which keeps 18 GB"
    assert will_run([A100], profile="fast", quantization="none", step_cache="none")
    assert will_run([], device="cpu")
    assert not will_run([], device="cpu", profile="fast"), "no CPU has matrix units for 8-bit floats"


@pytest.mark.parametrize(
    ("model", "works", "words"),
    [
        ("sora", False, "no model of this name; by name there are tiny, tiny-random, 5B, 2B, 5B-I2V, 1.5-5B"),
        ("/nowhere/at-all", False, "there is no such folder"),
        ("example/CogVideoX-mine", True, "whether it is one, and fits, is seen when it is loaded"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(model: str, works: bool, words: str) -> None:
    answer, lines = check.report(settings(model=model), [H200])

    assert answer is works
    assert words in lines[-1]


def test_without_a_gpu_the_command_says_so_and_exits_with_1(tmp_path: Path) -> None:
    environment = node_environment(tmp_path, port=free_port(), key="") | {"CUDA_VISIBLE_DEVICES": ""}
    ask = [sys.executable, "-m", "gpu_node", "--check", "5B"]

    result = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    assert result.returncode == 1, result.stderr
    assert "CogVideoX-5B: 49 frames of 720x480" in result.stdout
    assert "license of the weights: CogVideoX License" in result.stdout
    assert "RAM: " in result.stdout
    assert "GPU: no: t" in result.stdout, "torch sees none, or is built without CUDA"
    assert "  * exact  16 GB at least, 32 GB for full speed" in result.stdout
    assert result.stdout.endswith("It will not run as it is set up.\n")
    assert not (Path(os.environ.get("HF_HOME", tmp_path)) / "hub" / "models--THUDM--CogVideoX-5b").exists()


@pytest.mark.parametrize(
    ("model", "set_to", "expected"),
    [
        ("THUDM/CogVideoX-5b", "", "8d6ea3f817438460b25595a120f109b88d5fdfad"),
        ("2b", "", "1137dacfc2c9c012bed6a0793f4ecf2ca8e7ba01"),
        ("THUDM/CogVideoX-5b", "main", "main"),
        ("CogVideoX-5B-I2V", "", "a6f0f4858a8395e7429d82493864ce92bf73af11"),
        ("zai-org/CogVideoX1.5-5B", "", "fdc5267c90b5c06492985b966e43aae984e189e0"),
        ("1.5-5B-I2V", "", "46c90528707aebbe69066390b4fe7e7d24c9c2a4"),
        ("another/model", "", "main"),
        ("another/CogVideoX-5b", "", "main"),
    ],
)
def test_weights_are_of_a_known_commit(
    monkeypatch: pytest.MonkeyPatch, model: str, set_to: str, expected: str
) -> None:
    asked: list[str] = []

    def remember(model: str, revision: str, _: object) -> object:
        asked.append(revision)
        raise OSError("there is no network here")

    monkeypatch.setattr(loading.download, "fetch", remember)
    with pytest.raises(OSError, match="no network"):
        loading.load(EngineOptions(model=catalog.hub_id(model), revision=set_to, device="cpu"))
    assert asked == [expected]
