"""Training the demonstration model: that it learns, and that a stop costs nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from torch import nn

from gpu_node.demo_model import vocabulary
from gpu_node.demo_model.architecture import TRAINED
from gpu_node.demo_model.training import transformer, vae
from gpu_node.demo_model.training.__main__ import export
from gpu_node.demo_model.training.optim import Run, moving_average, muon
from tests.environment import REPOSITORY
from tests.preforked import forked_command


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, two threads that wait for each other take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_run(file: Path, *, seconds: float = 3600) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    adam = torch.optim.AdamW([model.bias], lr=0.01)
    optimisers = [muon([model.weight], lr=0.05), adam]
    return Run(
        file=file,
        seconds=seconds,
        model=model,
        optimisers=optimisers,
        average=moving_average(model, decay=0.9),
    )


def go_on(run: Run, steps: int) -> None:
    inputs = torch.eye(4)
    for _ in range(steps):
        run.step((run.model(inputs) - 1).square().mean(), samples=2)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    straight = a_run(tmp_path / "straight.pt")
    go_on(straight, 8)

    stopped = a_run(tmp_path / "stopped.pt")
    go_on(stopped, 5)
    stopped.save()
    (tmp_path / "stopped.new").write_bytes(b"half a checkpoint")
    resumed = a_run(tmp_path / "stopped.pt")
    assert (resumed.steps, resumed.samples) == (5, 10)
    go_on(resumed, 3)

    assert resumed.samples == straight.samples == 16
    assert resumed.spent > stopped.spent
    assert resumed.average.n_averaged == straight.average.n_averaged
    for name, value in straight.average.module.state_dict().items():
        torch.testing.assert_close(resumed.average.module.state_dict()[name], value)


def test_the_rate_falls_to_a_hundredth_when_the_time_is_up(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run.pt", seconds=1000)
    run.steps, run.spent = 500, 300
    go_on(run, 1)
    assert run.optimisers[1].param_groups[0]["lr"] == pytest.approx(0.01)
    run.spent = 1000
    go_on(run, 1)
    assert run.finished and (tmp_path / "run.pt").is_file()
    assert run.optimisers[1].param_groups[0]["lr"] == pytest.approx(0.0001, rel=0.01)


def test_muon_evens_out_all_directions_of_tall_and_wide_matrices_and_of_kernels() -> None:
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (8, 2, 2, 3, 3), (48, 2, 2, 2, 2)):
        parameter = nn.Parameter(torch.zeros(shape))
        optimiser = muon([parameter], lr=1.0)
        (parameter * (wanted := torch.randn(shape))).sum().backward()
        optimiser.step()
        values = torch.linalg.svdvals(parameter.detach().flatten(1))
        rows, columns = parameter.flatten(1).shape
        values /= max(1, rows / columns) ** 0.5
        assert values.min() > 0.5 and values.max() < 1.5
        before = torch.linalg.svdvals(wanted.flatten(1))
        assert before.max() > 2 * before.min()
        assert (parameter * wanted).sum() < 0, "downhill"


def test_the_parts_train_and_what_they_write_is_a_model_that_runs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = transformer.train(folder=tmp_path, seconds=0.1, device="cpu", compiled=False)
    again = transformer.train(folder=tmp_path, seconds=first.spent + 0.1, device="cpu", compiled=False)
    decoder = vae.train("decoder", folder=tmp_path, seconds=0.1, device="cpu")
    encoder = vae.train("encoder", folder=tmp_path, seconds=0.1, device="cpu")
    whole_clips = vae.train("encoder", folder=tmp_path, seconds=encoder.spent / 0.9, device="cpu")
    assert 0 < first.samples < again.samples
    begun = transformer.train(
        folder=tmp_path / "other", seconds=0.1, device="cpu", start=TRAINED, compiled=False
    )
    assert begun.last_loss < again.last_loss / 3, "a start from the shipped weights leaves little to learn"
    assert decoder.samples > 0 and whole_clips.samples > encoder.samples > 0
    learned = vae.train("encoder", folder=tmp_path / "other", seconds=0.1, device="cpu", start=TRAINED)
    assert learned.last_loss < encoder.last_loss / 2
    curve = [json.loads(line) for line in (tmp_path / "transformer.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in curve] == [first.samples, again.samples]
    assert all(0 < line["loss"] < 100 for line in curve)

    export(checkpoints=tmp_path, to=tmp_path / "weights")
    pipe = CogVideoXPipeline.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    embeddings, tokens = pipe.text_encoder.shared.weight, pipe.tokenizer.convert_tokens_to_ids
    for word, synonyms in vocabulary.SYNONYMS.items():
        for synonym in synonyms:
            assert torch.equal(embeddings[tokens(f"▁{synonym}")], embeddings[tokens(f"▁{word}")])
    assert pipe.vae.encoder.conv_out.conv.weight.abs().sum() > 0
    frames = pipe("a red ball", num_inference_steps=2, max_sequence_length=16, output_type="np").frames
    assert frames.shape == (1, 17, 96, 144, 3)


def test_a_part_is_trained_alone_and_the_others_stay_as_they_are_shipped(tmp_path: Path) -> None:
    command = [*forked_command("gpu_node.demo_model.training"), "--part", "encoder", "--minutes", "0.002"]
    subprocess.run(
        [*command, "--folder", tmp_path, "--start", TRAINED], cwd=REPOSITORY, check=True, timeout=150
    )
    before, after = (
        CogVideoXPipeline.from_pretrained(folder, dtype=torch.float32)
        for folder in (TRAINED, tmp_path / "weights")
    )
    for untouched in ("transformer", "text_encoder"):
        assert_same_weights(getattr(before, untouched), getattr(after, untouched))
    assert_same_weights(before.vae.decoder, after.vae.decoder)
    new = torch.load(tmp_path / "encoder.pt", weights_only=True)["average"]
    torch.testing.assert_close(dict(after.vae.encoder.state_dict()), new, rtol=1e-3, atol=1e-4)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
