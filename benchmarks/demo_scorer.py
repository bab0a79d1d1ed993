"""The scorer: names colour, shape, motion and background of a clip, from its pixels alone.

It knows the renderer's pictures but nothing of the model, the latents or the prompt. Where nothing fits, the answer is
None, which counts as wrong.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from gpu_node.demo_model.renderer import (
    BOUNCE_FRAMES,
    DEGREES_A_FRAME,
    EDGE,
    background_pictures,
    pixel_grid,
    signed_distance,
)
from gpu_node.demo_model.vocabulary import BACKGROUNDS, COLOURS, SHAPES

VISIBLE = 0.13  # how far a pixel's colour must be from the background's to belong to the object
SMALLEST = 120  # pixels; fewer are no object
MOVED = 25.0  # pixels
GREW = 2.0  # times the area
TURNED_OVERLAP = 0.88  # a shape that turned overlaps with itself less than this
SHAPE_EVERY = 4  # frames; more tell nothing new
ANGLES = 20  # tried for each shape, over a third of a turn


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Content that the scorer makes out; keys of the vocabulary."""

    colour: str | None
    shape: str | None
    motion: str | None
    background: str


def look(clip: Tensor) -> Seen:
    """Describe one clip: (3, frames, 96, 144), from 0 to 1."""
    behind = _background(clip)
    # The pixels that belong to the object, (frames, 96, 144); specks are dropped and pinholes closed.
    differs = ((clip - background_pictures()[behind][:, None]).abs().amax(0) > VISIBLE).float()
    mask = functional.avg_pool2d(differs[:, None], 3, stride=1, padding=1)[:, 0] > 0.5
    area = mask.sum((1, 2))
    background = list(BACKGROUNDS)[behind]
    if area.min() < SMALLEST:
        return Seen(colour=None, shape=None, motion=None, background=background)
    return Seen(
        colour=_colour(clip, mask),
        shape=_shape(mask[::SHAPE_EVERY]),
        motion=_motion(mask),
        background=background,
    )


def _background(clip: Tensor) -> int:
    """Return the picture from which the fewest pixels differ; an object never hides more than a third of it."""
    typical = clip.median(dim=1).values
    differs = (background_pictures() - typical).abs().amax(1)
    return int(differs.clamp(max=0.25).mean((1, 2)).argmin())


def _colour(clip: Tensor, mask: Tensor) -> str:
    """Return the colour that is nearest to that of the object's inside."""
    inside = functional.avg_pool2d(mask[:, None].float(), 7, stride=1, padding=3)[:, 0] > 0.99
    chosen = inside if inside.any() else mask
    seen = clip.permute(1, 2, 3, 0)[chosen].median(0).values
    known = torch.tensor(list(COLOURS.values())) / 255
    return list(COLOURS)[int((known - seen).norm(dim=1).argmin())]


def _centres(mask: Tensor) -> Tensor:
    """Return the middle of each frame's object: (frames, 2), x and y."""
    weight = mask.float()[..., None]
    return (pixel_grid() * weight).sum((1, 2)) / weight.sum((1, 2))


def _motion(mask: Tensor) -> str | None:
    centres, area = _centres(mask), mask.sum((1, 2)).float()
    (dx, dy), growth = (centres[-1] - centres[0]).tolist(), (area[-1] / area[0]).item()
    rise = centres[::BOUNCE_FRAMES, 1].mean() - centres[BOUNCE_FRAMES // 2 :: BOUNCE_FRAMES, 1].mean()
    if abs(dx) > MOVED and abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    if abs(dy) > MOVED:
        return "down" if dy > 0 else "up"
    if growth > GREW:
        return "growing"
    if growth < 1 / GREW:
        return "shrinking"
    if rise > MOVED:
        return "bouncing"
    return "turning" if _turned(mask, centres) else None


def _turned(mask: Tensor, centres: Tensor) -> bool:
    """Return True when the outline of some later frame, laid over the first by its middle, differs from it."""
    first = _cut_out(mask[:1], centres[:1])
    later = _cut_out(mask[2:], centres[2:])
    overlap = (first & later).sum((1, 2)) / (first | later).sum((1, 2))
    return bool(overlap.min() < TURNED_OVERLAP)


def _cut_out(mask: Tensor, centres: Tensor, *, reach: int = 44) -> Tensor:
    """Cut the object out with its middle in the middle: (frames, 88, 88)."""
    padded = functional.pad(mask, (reach, reach, reach, reach))
    pieces = []
    for frame, (x, y) in zip(padded, centres.round().int().tolist(), strict=True):
        pieces.append(frame[y : y + 2 * reach, x : x + 2 * reach])
    return torch.stack(pieces)


def _shape(mask: Tensor) -> str:
    """Return the shape whose outline, at the best angle, overlaps most with the object over all frames."""
    pieces = _cut_out(mask, _centres(mask))
    area = pieces.sum((1, 2)).float()
    scores = torch.zeros(len(SHAPES))
    for index in range(len(SHAPES)):
        known = _silhouettes(index, area)
        overlap = (known & pieces).sum((2, 3)) / (known | pieces).sum((2, 3))
        scores[index] = overlap.amax(0).mean()
    return SHAPES[int(scores.argmax())]


def _silhouettes(shape: int, area: Tensor, *, reach: int = 44) -> Tensor:
    """Draw the shape at every angle and at the area of every frame, centred: (angles, frames, 88, 88)."""
    unit_area, middle = _area_and_middle(shape)
    radius = (area / unit_area).sqrt()
    axis = torch.arange(2 * reach) - reach + 0.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = torch.arange(ANGLES) * math.radians(DEGREES_A_FRAME)
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    turned = torch.stack((cos * x + sin * y, cos * y - sin * x), dim=-1)
    place = turned[:, None] / radius[:, None, None, None] + middle
    every = torch.full((ANGLES,), shape)
    return signed_distance(every, place) * radius[:, None, None] < EDGE / 2 - 0.5


@lru_cache
def _area_and_middle(shape: int) -> tuple[float, Tensor]:
    """Return the area of the shape with radius 1, in square radii, and the middle of that area."""
    axis = torch.linspace(-1.5, 1.5, 301)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None]
    inside = signed_distance(torch.tensor([shape]), points)[0] < 0
    return inside.sum().item() * 0.01**2, points[0][inside].mean(0)
