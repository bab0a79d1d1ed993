"""`python -m gpu_node.tiny.contact_sheet FILE.jpg`: the examination's first twelve clips, whatever became of them."""

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gpu_node.tiny.examination import made_clips, prompts
from gpu_node.tiny.folder import TRAINED
from gpu_node.tiny.renderer import FRAMES, HEIGHT, WIDTH
from gpu_node.tiny.score import load

CLIPS = 12
COLUMNS = 2
SHOWN = 5  # frames of each clip, evenly spread
CAPTION, GAP = 18, 8  # pixels


def main() -> None:
    """Make the clips and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m gpu_node.tiny.contact_sheet")
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", type=Path, default=TRAINED)
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip, 8N+1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = made_clips(load(options.model), prompts(CLIPS), frames=options.frames)
    made = [(wanted.prompt, clip) for wanted, clip in clips]
    sheet(made).save(options.file, quality=88)


def sheet(made: list[tuple[str, Tensor]]) -> Image.Image:
    """One strip a clip, with its prompt above it."""
    strips = [_strip(prompt, clip) for prompt, clip in made]
    width, height = strips[0].size
    rows = -(-len(strips) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, strip in enumerate(strips):
        row, column = divmod(index, COLUMNS)
        page.paste(strip, (column * (width + GAP), row * (height + GAP)))
    return page


def _strip(prompt: str, clip: Tensor) -> Image.Image:
    strip = Image.new("RGB", (WIDTH * SHOWN, HEIGHT + CAPTION), "white")
    ImageDraw.Draw(strip).text((2, 3), prompt, fill="black")
    for place in range(SHOWN):
        frame = (
            (clip[:, place * (clip.shape[1] - 1) // (SHOWN - 1)].permute(1, 2, 0) * 255)
            .round()
            .byte()
            .numpy()
        )
        strip.paste(Image.fromarray(frame), (place * WIDTH, CAPTION))
    return strip


if __name__ == "__main__":
    main()
