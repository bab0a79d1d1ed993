"""The GPU node's levers side by side with diffusers as it comes, at the real shapes of CogVideoX-5B.

    python -m benchmarks.gpu_node               # measure all, then write docs/gpu-performance.md
    python -m benchmarks.gpu_node --minutes 8.5 --resume  # at most so long: again until it says that all is measured

What tells most comes first: of half an hour on a rented GPU nothing is lost. Each way of making a clip is measured for
each preset in a process of its own, in less than ten minutes, and its figures are kept in --out: with --resume a run
goes on where the last one ended, or was cut off; without, it begins anew. What fails, or takes longer, is told in the
report and does not stop the others. Where no weights are there they are random (`benchmarks/gpu_shapes.py`): time does
not depend on them, except for the steps that are left out, which then are as many as is published. The distance of one
call of the transformer to stock diffusers in float32 shows that a lever does what it says, not how a picture looks.
`--model tiny --compile-backend eager` runs all of it on a CPU in some minutes, to try the script itself.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cases import PRESETS, RANDOM, WAYS, Case, measure
from benchmarks.gpu_report import DifferentMachines, write_report
from benchmarks.gpu_shapes import SHAPES
from gpu_node.catalog import DEFAULT
from gpu_node.check import is_downloaded

COMMAND = [sys.executable, "-m", "benchmarks.gpu_node"]  # measures one case
LONGEST_CASE = 570.0  # seconds: some machines grant ten minutes to a command
PAGE = Path("docs/gpu-performance.md")
# Three commands of less than ten minutes each; the rest follows.
FIRST = (
    *(f"quick.{way}" for way in ("stock", "attention", "exact", "fp8", "fast")),
    *(f"standard.{way}" for way in ("stock", "exact", "fp8", "fast", "skip")),
)
TOOK_TOO_LONG = "took too long"
SOME_FAILED, CASES_LEFT = 1, 3  # exit status


def run_cases(cases: list[Case], out: Path, *, seconds: float = math.inf) -> list[Case]:
    """Measure what is not measured yet, for so long at most; the cases that are left for another time.

    A case that was given all of the time, or LONGEST_CASE, and did not end is kept as failed: it never would.
    """
    deadline = time.monotonic() + seconds
    left = [case for case in cases if not _kept(case, out).exists()]
    whole = min(seconds, LONGEST_CASE)  # what the first has; those after it may have less
    while left and (limit := min(whole, deadline - time.monotonic())) > 0:
        case = left[0]
        print(f"{case.name} …", flush=True)
        why = _in_a_process(case, out, limit)
        if why == TOOK_TOO_LONG and limit < whole - 1:
            print(f"{case.name} did not fit into what was left of the time", flush=True)
            break
        if not _kept(case, out).exists():
            _keep(case, out, {"failed": why if why != TOOK_TOO_LONG else f"not done in {limit:.0f} s"})
        left.pop(0)
    return left


def _in_a_process(case: Case, out: Path, limit: float) -> str:
    """Measure the case in a process of its own; return how that ended."""
    command = [*COMMAND, "--one", case.name, "--out", str(out)]
    command += ["--model", case.model, "--compile-backend", case.backend, "--weights", case.weights]
    try:
        return f"its process ended with {subprocess.run(command, timeout=limit).returncode}"
    except subprocess.TimeoutExpired:
        return TOOK_TOO_LONG


def run_one(case: Case, out: Path) -> None:
    """Measure one case here, and keep what came of it."""
    try:
        figures = measure(case, out)
    except (
        Exception
    ) as error:  # one lever that does not work on this machine must not hide the others' figures
        traceback.print_exc()
        figures = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    _keep(case, out, figures)


def _kept(case: Case, out: Path) -> Path:
    return out / f"{case.name}.json"


def _keep(case: Case, out: Path, figures: dict[str, Any]) -> None:
    part = out / f"{case.name}.json.part"
    about = {"model": case.model, "weights": case.weights, "steps": case.steps, "frames": case.frames}
    part.write_text(json.dumps(about | figures))
    part.replace(_kept(case, out))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="5B", choices=SHAPES)
    parser.add_argument("--ways", help="by commas; the first must be stock")
    parser.add_argument("--presets", help="by commas")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="of this call; default: until all is done"
    )
    parser.add_argument(
        "--out", type=Path, help="where figures are kept; default: .data/bench/gpu_node/MODEL"
    )
    parser.add_argument("--report", type=Path, help=f"the page to write; default: {PAGE}, of tiny in --out")
    parser.add_argument(
        "--weights", help="a folder, a hub id, or random; default: the 5B's if they are downloaded"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what is measured already")
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    is_there = arguments.model == "5B" and is_downloaded(DEFAULT.hub_id, DEFAULT.revision)
    arguments.weights = arguments.weights or (DEFAULT.hub_id if is_there else RANDOM)
    arguments.out = arguments.out or Path(".data/bench/gpu_node") / arguments.model
    arguments.report = arguments.report or (PAGE if arguments.model == "5B" else arguments.out / "report.md")
    return arguments


def _cases(arguments: argparse.Namespace) -> list[Case]:
    names = [arguments.one] if arguments.one else None
    if arguments.presets or arguments.ways:
        presets, ways = arguments.presets or "quick,standard", arguments.ways or ",".join(WAYS)
        names = names or [f"{preset}.{way}" for preset in presets.split(",") for way in ways.split(",")]
    everything = (f"{preset}.{way}" for preset in PRESETS[arguments.model] for way in WAYS)
    names = names or list(dict.fromkeys([*FIRST, *everything]))
    cases = []
    for name in names:
        preset, _, way = name.partition(".")
        if way not in WAYS or preset not in PRESETS[arguments.model]:
            sys.exit(f"There is no {name}: presets are {', '.join(PRESETS['5B'])}, ways {', '.join(WAYS)}.")
        backend, weights = arguments.compile_backend, arguments.weights
        cases.append(Case(model=arguments.model, preset=preset, way=way, backend=backend, weights=weights))
    return cases


def main() -> int:
    """Exit status: 0 all is measured, 1 some of it failed, 3 some of it is left for another call."""
    arguments = _arguments()
    cases, out = _cases(arguments), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.one is not None:
        run_one(cases[0], out)
        return 0
    if not arguments.resume:
        for case in cases:
            _kept(case, out).unlink(missing_ok=True)
    if arguments.model == "5B" and not torch.cuda.is_available():
        sys.exit("The shapes of the 5B need a CUDA GPU; `--model tiny` runs on a CPU.")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # and not without the case's process
    left = run_cases(cases, out, seconds=60 * arguments.minutes)
    try:
        tables = write_report(out, arguments.report, ways=list(WAYS))
    except DifferentMachines as error:
        sys.exit(f"{out}: {error}")
    print(f"{tables}\n\nThis is in {arguments.report} now.")
    if left:
        print(f"{len(left)} of {len(cases)} cases are left: run it again.")
        return CASES_LEFT
    failed = [case.name for case in cases if "failed" in json.loads(_kept(case, out).read_text())]
    print(
        f"Failed; delete their files in {out} to try again: {', '.join(failed)}"
        if failed
        else "All is measured."
    )
    return SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
