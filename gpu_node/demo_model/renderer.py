"""The clips that the demonstration model learns from: one object with one motion in front of one background.

Everything is a batch of tensors on one device, so that a GPU draws as well as a CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from gpu_node.demo_model.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Combination

WIDTH, HEIGHT, FRAMES, FPS = 144, 96, 17, 8
EDGE = 1.2  # pixels over which an edge fades
RIM = 2.0  # pixels of darker outline, which sets an object off from a background of its own colour
DEGREES_A_FRAME = 6.0
BOUNCE_FRAMES = 8
TABLE_SIZE, TABLE_REACH = 192, 2.4  # the table of distances covers ±2.4 radii

_SKIES: dict[str, tuple[int, tuple[tuple[int, int, int], ...]]] = {
    # the horizon's row, then sky above, sky at the horizon, ground at the horizon, ground below
    "black": (48, ((8, 8, 10),) * 4),
    "white": (48, ((245, 245, 242),) * 4),
    "sea": (48, ((160, 208, 240), (228, 240, 248), (30, 92, 140), (12, 50, 92))),
    "meadow": (56, ((140, 196, 245), (218, 236, 250), (84, 132, 58), (42, 84, 34))),
    "desert": (56, ((250, 206, 140), (255, 238, 205), (206, 158, 98), (160, 108, 62))),
    "night": (64, ((10, 14, 46), (46, 48, 104), (24, 28, 34), (10, 12, 16))),
}


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A batch of clips before they are drawn. Pixels, radians; `n` clips of `t` frames.

    `centre`: (n, t, 2), x to the right and y down. `radius`, `angle`: (n, t). `shape`, `background`: (n,) indices.
    `colour`: (n, 3), sRGB from 0 to 1.
    """

    centre: Tensor
    radius: Tensor
    angle: Tensor
    shape: Tensor
    colour: Tensor
    background: Tensor


def scenes(
    combinations: Sequence[Combination], generator: torch.Generator, *, frames: int = FRAMES
) -> Scenes:
    """Make one scene for each combination; where it is free, the path and the size are drawn by chance.

    A longer clip goes the same way more slowly, but turns and bounces on at the same speed.
    """
    count = len(combinations)
    chance = torch.rand(count, 3, generator=generator)
    motion = torch.tensor([list(MOTIONS).index(item.motion) for item in combinations])
    centre, radius, angle = _paths(motion, chance, frames)
    shapes = [SHAPES.index(item.shape) for item in combinations]
    colours = [COLOURS[item.colour] for item in combinations]
    backgrounds = [list(BACKGROUNDS).index(item.background) for item in combinations]
    return Scenes(
        centre=centre,
        radius=radius,
        angle=angle,
        shape=torch.tensor(shapes),
        colour=torch.tensor(colours) / 255,
        background=torch.tensor(backgrounds),
    )


def _paths(motion: Tensor, chance: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return centre, radius and angle of every frame. `chance`: (n, 3) from 0 to 1, for x, y and the size."""
    time = torch.linspace(0, 1, frames).expand(len(motion), frames)
    kind = {name: (motion == index)[:, None] for index, name in enumerate(MOTIONS)}
    free = chance[:, :, None] * 2 - 1
    size = 22 + 2 * free[:, 2]
    x = (WIDTH / 2 + 26 * free[:, 0]).expand_as(time)
    y = (HEIGHT / 2 + 8 * free[:, 1]).expand_as(time)
    across, along = 94 * (time - 0.5), 46 * (time - 0.5)
    x = torch.where(kind["right"], WIDTH / 2 + across, torch.where(kind["left"], WIDTH / 2 - across, x))
    y = torch.where(kind["down"], HEIGHT / 2 + along, torch.where(kind["up"], HEIGHT / 2 - along, y))
    phase = (time * (frames - 1) / BOUNCE_FRAMES) % 1
    y = torch.where(kind["bouncing"], 71 - 46 * 4 * phase * (1 - phase), y)
    radius = size.expand_as(time)
    radius = torch.where(kind["growing"], 12 + 20 * time, radius)
    radius = torch.where(kind["shrinking"], 32 - 20 * time, radius)
    turned = math.radians(DEGREES_A_FRAME) * (frames - 1) * time
    angle = torch.where(kind["turning"], turned, torch.zeros_like(time))
    return torch.stack((x, y), dim=-1), radius, angle


def object_coordinates(scene: Scenes, points: Tensor) -> Tensor:
    """Return the place of each point as seen from the object: (n, t, *points, 2) in radii, turned with it.

    `points`: (height, width, 2) in pixels.
    """
    offset = points - scene.centre[:, :, None, None]
    cos, sin = scene.angle.cos()[:, :, None, None], scene.angle.sin()[:, :, None, None]
    across, down = offset.unbind(-1)
    turned = torch.stack((cos * across + sin * down, cos * down - sin * across), dim=-1)
    return turned / scene.radius[:, :, None, None, None]


def pixel_grid(*, step: int = 1) -> Tensor:
    """Return the centres of squares of `step` pixels: (height / step, width / step, 2)."""
    rows = torch.arange(step / 2, HEIGHT, step) - 0.5
    columns = torch.arange(step / 2, WIDTH, step) - 0.5
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def draw(scene: Scenes) -> Tensor:
    """Draw the clips: (n, 3, t, 96, 144), from 0 to 1."""
    place = object_coordinates(scene, pixel_grid())
    distance = signed_distance(scene.shape, place) * scene.radius[:, :, None, None]
    cover = (0.5 - distance / EDGE).clamp(0, 1)[:, None]
    inside = (0.5 - (distance + RIM) / EDGE).clamp(0, 1)[:, None]
    light = (1.06 - 0.16 * place[..., 1].clamp(-1, 1))[:, None] * (0.6 + 0.4 * inside)
    paint = (scene.colour[:, :, None, None, None] * light).clamp(0, 1)
    behind = background_pictures()[scene.background][:, :, None]
    return behind + cover * (paint - behind)


def signed_distance(shape: Tensor, place: Tensor) -> Tensor:
    """Return the distance to the outline in radii, negative inside: (n, …) for `place` (n, …, 2) in radii.

    Beyond the table, the distance of the table's nearest place is given.
    """
    table = distance_table()[shape][:, None]
    grid = place.reshape(len(place), -1, 1, 2) / TABLE_REACH
    found = functional.grid_sample(table, grid, padding_mode="border", align_corners=True)
    return found.reshape(place.shape[:-1])


@lru_cache
def background_pictures() -> Tensor:
    """Draw the six backgrounds: (6, 3, 96, 144), from 0 to 1."""
    return torch.stack([_landscape(*_SKIES[name]) for name in BACKGROUNDS])


def _landscape(horizon: int, colours: tuple[tuple[int, int, int], ...]) -> Tensor:
    top, far, near, bottom = (torch.tensor(colour) / 255 for colour in colours)
    sky = torch.lerp(top, far, torch.linspace(0, 1, horizon)[:, None])
    ground = torch.lerp(near, bottom, torch.linspace(0, 1, HEIGHT - horizon)[:, None])
    return torch.cat((sky, ground)).T[:, :, None].expand(3, HEIGHT, WIDTH)


@lru_cache
def distance_table() -> Tensor:
    """Return signed distances of the five shapes on a square grid: (5, 192, 192), in radii."""
    axis = torch.linspace(-TABLE_REACH, TABLE_REACH, TABLE_SIZE)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    return torch.stack([_polygon_distance(points, outline(shape)) for shape in SHAPES])


def outline(shape: str) -> Tensor:
    """Return the corners of the shape, clockwise from the top: (corners, 2) in radii, y down; about equal in area."""
    if shape == "ball":
        return _ring([0.88] * 72)
    if shape == "square":
        return _ring([1.13] * 4, start=0.5)
    if shape == "triangle":
        return _ring([1.26] * 3) + torch.tensor([0.0, 0.16])
    if shape == "star":
        return _ring([1.24, 0.54] * 5) + torch.tensor([0.0, 0.06])
    return _heart()


def _ring(radii: list[float], *, start: float = 0.0) -> Tensor:
    turn = (torch.arange(len(radii)) + start) * 2 * math.pi / len(radii)
    return torch.tensor(radii)[:, None] * torch.stack((turn.sin(), -turn.cos()), dim=-1)


def _heart() -> Tensor:
    """Return the well-known curve x = 16 sin³, y = 13 cos − 5 cos 2 − 2 cos 3 − cos 4."""
    turn = torch.arange(96) * 2 * math.pi / 96
    x = 16 * turn.sin() ** 3
    y = 13 * turn.cos() - 5 * (2 * turn).cos() - 2 * (3 * turn).cos() - (4 * turn).cos()
    return torch.stack((x, -y - 2), dim=-1) / 15.5


def _polygon_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Return the signed distance to a polygon: nearest edge, and the sign by counting crossings."""
    nearest = torch.full(points.shape[:-1], math.inf)
    inside = torch.zeros(points.shape[:-1], dtype=torch.bool)
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        edge, to_point = end - start, points - start
        along = ((to_point @ edge) / (edge @ edge)).clamp(0, 1)
        nearest = torch.minimum(nearest, (to_point - along[..., None] * edge).norm(dim=-1))
        crosses = (points[..., 1] < start[1]) != (points[..., 1] < end[1])
        if edge[1] != 0:
            inside ^= crosses & (points[..., 0] < start[0] + edge[0] * to_point[..., 1] / edge[1])
    return torch.where(inside, -nearest, nearest)
