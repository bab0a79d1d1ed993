"""`benchmarks/gpu_node.py` at tiny shapes on a CPU: the script that is to run on a GPU in one call."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_node import WAYS, Case, run_slice
from benchmarks.gpu_report import BEGIN, END, write_report
from benchmarks.gpu_shapes import SHAPES, floating_point_operations
from tests.node_process import REPOSITORY

PAGE = REPOSITORY / "docs" / "gpu-performance.md"


def test_the_floor_is_reckoned_from_the_real_shapes_of_the_5b() -> None:
    step, decoding = floating_point_operations(SHAPES["5B"], 49)

    assert step / 1e12 == pytest.approx(664.4, rel=0.001)
    assert decoding / 1e12 == pytest.approx(315, rel=0.001)


def test_ways_are_measured_in_slices_and_written_into_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n")
    cases = [
        Case(model="tiny", preset="quick", way=way, backend="eager") for way in ("stock", "exact", "fp8")
    ]

    assert run_slice(cases, tmp_path, seconds=160) == 0
    (tmp_path / "quick.fp8.json").rename(tmp_path / "kept.json")
    assert run_slice(cases, tmp_path, seconds=0) == 1, "what is measured stays so, and no time is no time"
    (tmp_path / "kept.json").rename(tmp_path / "quick.fp8.json")
    write_report(tmp_path, page, ways=list(WAYS))

    exact = json.loads((tmp_path / "quick.exact.json").read_text())
    assert exact["distance"] < 1e-4
    assert exact["setup"]["compiled"] is True
    assert 0 <= exact["idle"] < exact["clip"]
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["way", "stock", "exact", "fp8"]
    assert "fp8 needs a CUDA GPU" in rows[-1]
    assert page.read_text().startswith("above\n")
    assert page.read_text().endswith("below\n")


def test_the_page_says_nothing_that_was_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())

    write_report(tmp_path / "empty", page, ways=["stock", "exact"])

    assert f"{BEGIN}\nNot measured.\n{END}" in page.read_text()
