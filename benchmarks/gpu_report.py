"""The page about GPU performance, from the figures that `benchmarks/gpu_node.py` kept."""

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = (
    "| way | seconds a step | text | text, cached | VAE | MP4 | one clip, in a row | of stock | of the floor | "
    "idle between clips | peak memory | distance |"
)


def write_report(results: Path, page: Path, *, ways: list[str]) -> None:
    """Put the tables between the page's two marks. "Not measured." where nothing was."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    page.write_text(f"{before}{BEGIN}\n{_tables(results, ways)}\n{END}{after}", encoding="utf-8")


def _tables(results: Path, ways: list[str]) -> str:
    parts = []
    for preset in ("quick", "standard"):
        figures = {way: _read(results / f"{preset}.{way}.json") for way in ways}
        measured = {way: found for way, found in figures.items() if found is not None}
        if measured:
            parts.append(_table(preset, measured))
    return "\n\n".join(parts) or "Not measured."


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _table(preset: str, measured: dict[str, dict[str, Any]]) -> str:
    one = next(iter(measured.values()))
    speed = max(figures["operations_per_second"] for figures in measured.values())
    floor = one["operations"] / speed
    title = (
        f"**{preset}**: {one['model']} shapes, {one['frames']} frames, {one['steps']} steps, on {one['device']}, "
        f"torch {one['torch']}, stock {one['dtype'].removeprefix('torch.')}. The arithmetic floor of a clip is "
        f"{floor:.2f} s at the {speed / 1e12:.2g} TFLOP/s of a large matrix product."
    )
    lines = [title, "", HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    stock = measured.get("stock", {}).get("clip")
    lines += [_row(way, figures, stock, floor) for way, figures in measured.items()]
    return "\n".join(lines)


def _row(way: str, figures: dict[str, Any], stock: float | None, floor: float) -> str:
    if "not_possible" in figures:
        return f"| {way} | {figures['not_possible']} |" + " |" * (HEAD.count("|") - 3)
    clip = figures["clip"]
    cells = [
        way,
        f"{figures['step']:.3f}",
        f"{figures['text']:.3f}",
        _seconds(figures.get("text_cached")),
        f"{figures['decode']:.2f}",
        f"{figures['encode']:.2f}",
        f"{clip:.2f} s",
        f"{clip / stock:.2f}" if stock else "",
        f"{clip / floor:.2f}",
        "" if figures.get("idle") is None else f"{figures['idle'] * 1000:.0f} ms",
        f"{figures['peak_memory_mb'] / 1024:.1f} GB",
        f"{figures['distance']:.4f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
