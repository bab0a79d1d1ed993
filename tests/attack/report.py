"""The table of `make attack` in docs/security.md.

python -m tests.attack.report ROWS docs/security.md   writes the rows that a run left in a folder
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HEAD = "| attack | what was tried | what held | a customer's page meanwhile: median | |"
TABLE = re.compile(r"(<!-- make attack -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass
class Row:
    """One line of the table. `passed` is false until the test behind it has seen that all of it held."""

    attack: str
    tried: str = ""
    held: str = "did not finish"
    meanwhile: str = ""
    passed: bool = False

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.attack}.json").write_text(json.dumps(asdict(self), ensure_ascii=False))


def render(rows: list[Row], about: str) -> str:
    lines = [about, "", HEAD, "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.attack, row.tried, row.held, row.meanwhile, "held" if row.passed else "**broke**")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(folder: Path, page: Path) -> None:
    """Put the table between its two marks; exit 1 when something broke, or when nothing was tried."""
    rows = [Row(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]
    about = (folder / "about.txt").read_text()
    text, places = TABLE.subn(lambda found: found[1] + render(rows, about) + found[2], page.read_text())
    assert places == 1, f"{page} has no place for the table"
    page.write_text(text)
    broke = [row.attack for row in rows if not row.passed]
    print(f"{page}: {len(rows)} attacks, " + (f"broke: {', '.join(broke)}" if broke else "all held"))
    sys.exit(bool(broke) or not rows)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:3]))
