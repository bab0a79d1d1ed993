"""What a run of the chaos suite measured, and docs/reliability.md written from the runs.

python -m tests.chaos.scorecard docs/reliability   writes docs/reliability.md from the runs in that folder
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

INTRODUCTION = """# Reliability

What `make chaos SEED=n` measured. Every fault is real: SIGKILL to real process ids in the middle of work, an immediate
stop of a real PostgreSQL, a hostile GPU node at the other end of a socket, attacks in plain SQL. The suite asserts that
each fault landed; fewer than planned is red. `make test` runs a short round of each row, and
`tests/chaos/test_negative_controls.py` proves that the suite goes red when a guard is taken away.

The same seed gives the same plan of faults, victims and pauses; how the processes interleave is up to the machine.

"""
ROW_ORDER = [f"R{number}" for number in range(1, 20)]


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
    """One whole run: its seed, how long it took in seconds, on what, and its rows."""

    seed: int
    seconds: float
    machine: str
    rows: list[Row]

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
        f"{met} of {len(run.rows)} bars met, in {run.seconds / 60:.0f} minutes on {run.machine}.",
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


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".md").write_text(render([Run.read(path) for path in source.glob("seed-*.json")]))
