"""`benchmarks/gpu_node.py` at tiny shapes on a CPU: the script that is to run on a GPU in one call."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from benchmarks import gpu_cases, gpu_node
from benchmarks.gpu_cases import WAYS, Case
from benchmarks.gpu_node import run_cases, run_one
from benchmarks.gpu_report import BEGIN, END, DifferentMachines, write_report
from benchmarks.gpu_shapes import SHAPES, floating_point_operations
from gpu_node.catalog import PROFILES, StepCache
from gpu_node.engine.errors import ModelUnavailable
from tests.gpu_node import variants
from tests.node_process import REPOSITORY
from tests.preforked import forked_command

PAGE = REPOSITORY / "docs" / "gpu-performance.md"


def test_the_floor_is_reckoned_from_the_real_shapes_of_the_5b() -> None:
    step, decoding = floating_point_operations(SHAPES["5B"], 49)

    assert step / 1e12 == pytest.approx(664.4, rel=0.001)
    assert decoding / 1e12 == pytest.approx(315, rel=0.001)


def test_ways_are_measured_side_by_side_and_written_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_node, "COMMAND", forked_command("benchmarks.gpu_node"))
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    cases = [
        Case(model="tiny", preset="quick", way=way, backend="eager") for way in ("stock", "exact", "fp8")
    ]

    assert run_cases(cases[:1], tmp_path, seconds=0) == cases[:1], "no time is no time"
    assert run_cases(cases[:2], tmp_path) == []
    assert run_cases(cases, tmp_path, seconds=0.1) == [], "it was given all the time there was"
    tables = write_report(tmp_path, page, ways=list(WAYS))

    exact = json.loads((tmp_path / "quick.exact.json").read_text())
    assert exact["distance"] < 1e-4
    assert exact["setup"]["compiled"] is True
    assert 0 <= exact["idle"] < exact["clip"]
    rows = {row.split("|")[1].strip(): row for row in tables.splitlines() if row.startswith("| ")}
    assert list(rows) == ["way", "stock", "exact", "fp8"]
    assert all(cell.strip() for cell in rows["exact"].split("|")[1:-1]), "every figure is there"
    assert "failed: not done in 0 s" in rows["fp8"]
    assert page.read_text() == f"above\n{BEGIN}\n{tables}\n{END}\nbelow\n"


def test_a_way_that_cannot_be_measured_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(case: Case, *_: object) -> dict[str, Any]:
        raise {
            "fp8": ModelUnavailable("no such units"),
            "faster_cache": RuntimeError("a kernel\nis missing"),
        }[case.way]

    monkeypatch.setattr(gpu_cases, "_node", broken)
    for way in ("fp8", "faster_cache"):
        run_one(Case(model="tiny", preset="quick", way=way, backend="eager"), tmp_path)

    tables = write_report(tmp_path, tmp_path / "new.md", ways=list(WAYS))
    assert "| fp8 | no such units |" in tables
    assert "| faster_cache | failed: RuntimeError: a kernel is missing |" in tables


def test_figures_of_two_machines_are_not_compared(tmp_path: Path) -> None:
    for way, device in (("stock", "NVIDIA H200"), ("exact", "NVIDIA A100")):
        figures = {"device": device, "torch": "2.13.0", "weights": "random", "failed": "anything"}
        (tmp_path / f"quick.{way}.json").write_text(json.dumps(figures))

    with pytest.raises(DifferentMachines, match=r"A100, torch 2\.13\.0; NVIDIA H200"):
        write_report(tmp_path, tmp_path / "new.md", ways=list(WAYS))


def test_weights_that_are_there_are_used(tmp_path: Path) -> None:
    folder = variants.save("CogVideoX-5B", tmp_path / "mini")
    case = Case(model="tiny", preset="quick", way="stock", backend="eager", weights=str(folder))

    pipe = gpu_cases._pipeline(case, torch.device("cpu"), torch.float32)

    expected = variants.build("CogVideoX-5B").transformer.proj_out.weight
    assert torch.equal(pipe.transformer.proj_out.weight, expected)


def test_all_that_the_profiles_may_use_is_measured() -> None:
    assert {"stock", *PROFILES, "fp8", *get_args(StepCache)} - set(WAYS) == {"none"}


def test_the_page_says_nothing_that_was_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())

    write_report(tmp_path / "empty", page, ways=["stock", "exact"])

    assert f"{BEGIN}\nNot measured.\n{END}" in page.read_text()
