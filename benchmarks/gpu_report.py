"""The page about GPU performance, from the figures that `benchmarks/gpu_node.py` kept."""

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = (
    "| way | seconds a step | text | text, cached | VAE | MP4 | one clip, in a row | of stock | of the floor | "
    "idle between clips | peak memory | distance |"
)


class DifferentMachines(Exception):
    """The figures were not taken on one machine with one torch, so nothing can be said by comparing them."""


def write_report(results: Path, page: Path, *, ways: list[str]) -> str:
    """Put the tables between the page's two marks, and return them. "Not measured." where nothing was.

    A page that is not there is made. Raises DifferentMachines.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    tables = _tables(results, ways)
    page.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}", encoding="utf-8")
    return tables


def _tables(results: Path, ways: list[str]) -> str:
    parts = []
    machines: set[str] = set()
    for preset in ("quick", "standard"):
        figures = {way: _read(results / f"{preset}.{way}.json") for way in ways}
        measured = {way: found for way, found in figures.items() if found is not None}
        machines |= {
            f"{each['device']}, torch {each['torch']}" for each in measured.values() if "device" in each
        }
        if measured:
            parts.append(_table(preset, measured))
    if len(machines) > 1:
        raise DifferentMachines(f"its figures are of different machines: {'; '.join(sorted(machines))}.")
    return "\n\n".join(parts) or "Not measured."


def _machine(figures: dict[str, Any]) -> str:
    return f"{figures['device']}, torch {figures['torch']}, weights {figures['weights']}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _table(preset: str, measured: dict[str, dict[str, Any]]) -> str:
    """`measured`: of each way its figures, or a reason why there are none."""
    clips = {way: figures for way, figures in measured.items() if "clip" in figures}
    speed = max((figures["operations_per_second"] for figures in clips.values()), default=1.0)
    stock = clips.get("stock", {}).get("clip")
    rows = [_row(way, figures, stock, speed) for way, figures in measured.items()]
    return "\n".join([_title(preset, clips, speed), "", HEAD, "|---" * (HEAD.count("|") - 1) + "|", *rows])


def _title(preset: str, clips: dict[str, dict[str, Any]], speed: float) -> str:
    if not clips:
        return f"**{preset}**"
    one = next(iter(clips.values()))
    return (
        f"**{preset}**: {one['model']} shapes, {one['frames']} frames, {one['steps']} steps, on {_machine(one)}, "
        f"{one['dtype'].removeprefix('torch.')}. The arithmetic floor of a clip is "
        f"{one['operations'] / speed:.2f} s at the {speed / 1e12:.2g} TFLOP/s of a large matrix product."
    )


def _row(way: str, figures: dict[str, Any], stock: float | None, speed: float) -> str:
    if "clip" not in figures:
        why = figures.get("not_possible") or f"failed: {figures['failed']}"
        return f"| {way} | {why.replace('|', '/')} |" + " |" * (HEAD.count("|") - 3)
    clip = figures["clip"]
    cells = [
        way,
        f"{figures['step']:.3f}",
        f"{figures['text']:.3f}",
        _or_blank(figures.get("text_cached"), "{:.3f}"),
        f"{figures['decode']:.2f}",
        f"{figures['encode']:.2f}",
        f"{clip:.2f} s",
        f"{clip / stock:.2f}" if stock else "",
        f"{clip * speed / figures['operations']:.2f}",
        "" if figures.get("idle") is None else f"{figures['idle'] * 1000:.0f} ms",
        f"{figures['peak_memory_mb'] / 1024:.1f} GB",
        _or_blank(figures["distance"], "{:.1e}"),
    ]
    return "| " + " | ".join(cells) + " |"


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
