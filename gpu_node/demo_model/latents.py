"""The latents that belong to a clip, drawn: the latent space of the demonstration model is designed, not learned.

Around the object, each cell holds its place in the object's own coordinates, the distance to the outline, the shape and
the colour; everywhere it holds the background. These fields are smooth and redundant, so a small transformer predicts
them easily. The sharp edge is the decoder's work, which is trained to go from these fields to pixels.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from gpu_node.demo_model.renderer import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Scenes,
    background_pictures,
    object_coordinates,
    pixel_grid,
    signed_distance,
)

CELL = 8  # pixels, as four VAE blocks make it
GROUP = 4  # frames in a latent frame, save the first, which has one


def length(frames: int) -> int:
    """Return the number of latent frames that stand for so many frames."""
    return (frames - 1) // GROUP + 1


LATENT_FRAMES = length(FRAMES)  # of the native length
LATENT_HEIGHT, LATENT_WIDTH = HEIGHT // CELL, WIDTH // CELL
COORDINATES, OUTLINE, SHAPE, COLOUR = slice(0, 4), slice(4, 6), slice(6, 9), slice(9, 12)
BEHIND, CLOCK = slice(12, 15), 15
CHANNELS = 16

KNOWN_AT = (-2, 0)  # the frames of a group, counted from its last, whose coordinates are kept
NEAR, FAR = 15.0, 31.0  # pixels beyond the outline where the object's fields begin to fade, and are gone
STRAIGHT, CLIP = 1.5, 2.1  # radii up to which coordinates are exact, and which they never pass
SOFT = 10.0  # pixels from the outline over which the distance to it is encoded
CODES = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 1.0  # ball, square, …

# (value - MEAN) * SCALE brings every channel to mean 0 and about the same spread; the coordinates, on which the outline
# hangs, get a little more.
MEAN = torch.tensor([0.0] * 4 + [0.7] * 2 + [0.0] * 3 + [0.05] * 3 + [0.0] * 4)
SCALE = torch.tensor([2.0] * 4 + [2.0] * 2 + [2.0] * 3 + [2.5] * 3 + [1.2] * 3 + [1.0])


def draw_latents(scene: Scenes) -> Tensor:
    """Draw the latents: (n, l, 16, 12, 18), in the order of the transformer; 5 of them for 17 frames."""
    places = [_place_at(scene, offset) for offset in KNOWN_AT]
    presence = _presence(scene)[:, :, None]
    count, groups = presence.shape[:2]
    fields = torch.zeros(count, groups, CHANNELS, LATENT_HEIGHT, LATENT_WIDTH, device=presence.device)
    fields[:, :, COORDINATES] = torch.cat([_bent(place) for place, _ in places], dim=2) * presence
    distances = [signed_distance(scene.shape, place) * radius for place, radius in places]
    fields[:, :, OUTLINE] = (torch.stack(distances, dim=2) / SOFT).tanh()
    fields[:, :, SHAPE] = CODES[scene.shape][:, None, :, None, None] * presence
    fields[:, :, COLOUR] = (scene.colour * 2 - 1)[:, None, :, None, None] * presence
    behind = functional.avg_pool2d(background_pictures(), CELL)  # one colour a cell: (6, 3, 12, 18)
    fields[:, :, BEHIND] = behind[scene.background][:, None] * 2 - 1
    fields[:, :, CLOCK] = ((-1.0) ** torch.arange(groups, device=presence.device))[:, None, None]
    return (fields - MEAN[:, None, None]) * SCALE[:, None, None]


def nearness(fields: Tensor) -> Tensor:
    """Return how near each cell is to the outline or inside, from 0 to 1: (n, frames, 1, 12, 18)."""
    outside = fields[:, :, OUTLINE] / SCALE[OUTLINE.start] + MEAN[OUTLINE.start]
    return (1 - outside.amin(2, keepdim=True)).clamp(0, 1)


def _place_at(scene: Scenes, offset: int) -> tuple[Tensor, Tensor]:
    """Return the object's coordinates of every cell, (n, l, 12, 18, 2), and its radius, (n, l, 1, 1)."""
    frames = (torch.arange(0, scene.centre.shape[1], GROUP) + offset).clamp(min=0)
    chosen = replace(
        scene, centre=scene.centre[:, frames], radius=scene.radius[:, frames], angle=scene.angle[:, frames]
    )
    return object_coordinates(chosen, pixel_grid(step=CELL)), chosen.radius[:, :, None, None]


def _bent(place: Tensor) -> Tensor:
    """Bend coordinates so that they grow no further some way off the object: (n, l, 2, 12, 18)."""
    length = place.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    beyond = CLIP - STRAIGHT
    bent = STRAIGHT + beyond * ((length - STRAIGHT) / beyond).tanh()
    return (place * torch.where(length > STRAIGHT, bent / length, 1)).permute(0, 1, 4, 2, 3)


def _presence(scene: Scenes) -> Tensor:
    """Return 1 around the object, 0 far from it, smooth between: (n, l, 12, 18)."""
    centre, radius = _group_mean(scene.centre), _group_mean(scene.radius[..., None])
    distance = (pixel_grid(step=CELL) - centre[:, :, None, None]).norm(dim=-1) - radius[..., None]
    part: Tensor = ((FAR - distance) / (FAR - NEAR)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def _group_mean(values: Tensor) -> Tensor:
    """(n, t, k) → (n, l, k)."""
    rest = values[:, 1:].reshape(len(values), -1, GROUP, values.shape[-1]).mean(2)
    return torch.cat((values[:, :1], rest), dim=1)
