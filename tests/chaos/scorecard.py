"""The measurements of a run of the chaos suite, and docs/reliability.md written from the runs.

python -m tests.chaos.scorecard docs/reliability   writes docs/reliability.md from the runs in that folder
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

INTRODUCTION = """# Reliability

What `make chaos SEED=n` measured. Every fault is real: SIGKILL to real process ids in the middle of work, an immediate
stop of a real PostgreSQL, a hostile GPU node at the other end of a socket, attacks in plain SQL. The suite asserts that
each fault landed; fewer than planned is red. `make test` runs a short round of each row, and
`tests/chaos/test_negative_controls.py` proves that the suite goes red when a guard is taken away.

R12: `audit_credits` runs at the end of every round, and a round is met only if it ends with 0. (In R8 it has to
report the holds and purchases that the attacks made up, and nothing else.)

The same seed gives the same plan of faults, victims and pauses; how the processes interleave is up to the machine.

"""
ROW_ORDER = [f"R{number}" for number in range(1, 14)]
# R12, that audit_credits ends with 0, is part of every row.
BARS = set(ROW_ORDER) - {"R12"}


@dataclass
class Row:
    """One line of the scorecard. `passed` is false until the test behind it has met its bar."""

    row: str
    test: str
    load: str
    faults: str
    bar: str
    result: str = "did not finish"
    passed: bool = False


@dataclass
class Run:
    """One whole run: its seed, how long it took in seconds, on what, of which commit, and its rows."""

    seed: int
    seconds: float
    machine: str
    rows: list[Row]
    commit: str

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed-{self.seed}.json"
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "Run":
        values = json.loads(path.read_text())
        return cls(**values | {"rows": [Row(**row) for row in values["rows"]]})


def render(runs: list[Run]) -> str:
    """The page, in Markdown, the rows of each run in their order."""
    return INTRODUCTION + "\n".join(_render_run(run) for run in sorted(runs, key=lambda run: run.seed))


def _render_run(run: Run) -> str:
    met = sum(row.passed for row in run.rows)
    lines = [
        f"## Seed {run.seed}",
        "",
        f"{met} of {len(run.rows)} bars met, in {run.seconds / 60:.0f} minutes on {run.machine}, "
        f"at commit {run.commit}.",
        "",
        "| # | test | load | faults | bar | result | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(run.rows, key=lambda row: (ROW_ORDER.index(row.row), row.test)):
        cells = (
            row.row,
            row.test,
            row.load,
            row.faults,
            row.bar,
            row.result,
            "met" if row.passed else "**missed**",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def join(parts: list[Run]) -> Run:
    """One run out of the parts that its processes left."""
    return Run(
        seed=parts[0].seed,
        seconds=max(part.seconds for part in parts),
        machine=parts[0].machine,
        rows=[row for part in parts for row in part.rows],
        commit=parts[0].commit,
    )


def present_commit(repository: Path) -> str:
    """Name the commit under test, and say whether anything but documents differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, check=False)

    if shutil.which("git") is None:
        return "unknown"
    commit = git("rev-parse", "--short", "HEAD").stdout.strip() or "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", ".", ":!docs").returncode
    return f"{commit}, changed" if changed else commit


def main(parts: Path, runs: Path, page: Path) -> None:
    """Keep the run whose parts lie in a folder, and write the page; exit 1 when a bar was missed."""
    run = join([Run.read(path) for path in sorted(parts.glob("*/seed-*.json"))])
    run.write(runs)
    page.write_text(render([Run.read(path) for path in runs.glob("seed-*.json")]))
    missed = sorted({row.row for row in run.rows if not row.passed} | (BARS - {row.row for row in run.rows}))
    print(f"{page}: seed {run.seed}, " + (f"missed: {', '.join(missed)}" if missed else "every bar met"))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
