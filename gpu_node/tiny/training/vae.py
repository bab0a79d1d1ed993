"""Trains the VAE: its decoder from drawn latents to pixels, its encoder the other way."""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from gpu_node.tiny import architecture, latents
from gpu_node.tiny.renderer import Scenes, draw, object_coordinates, pixel_grid, scenes
from gpu_node.tiny.training.muon import Muon
from gpu_node.tiny.training.run import Average, Run
from gpu_node.tiny.vocabulary import training_combinations

BATCH = 1
NOISE = 0.15  # the most that is added to the latents, so that the decoder puts up with the transformer's small errors
WINDOW = 3  # latent frames: the decoder takes a clip in such pieces
OFTEN = {"bouncing": 4, "right": 2, "left": 2, "up": 2, "down": 2}  # what moves fast is hardest to keep sharp
CROP = (10, 8)  # cells across and down
WHOLE_FROM = 0.85  # of the time: from then on whole clips, piece by piece with the cache between, as in use


def train(*, folder: Path, seconds: float, device: str, start: Path | None = None) -> Run:
    """Train until the time is up, going on from `folder`/vae.pt where there is one.

    `start`: a folder of weights to begin with, instead of from nothing.
    """
    torch.manual_seed(2)
    if start is None:
        model = architecture.vae()
        initialise(model)
    else:
        model = AutoencoderKLCogVideoX.from_pretrained(start / "vae", dtype=torch.float32)
    model.to(device)
    decoder = model.decoder
    run = Run(
        file=folder / "vae.pt",
        seconds=seconds,
        model=decoder,
        optimisers=_optimisers(decoder),
        average=Average(decoder, decay=0.995),
    )
    chance = random.Random(run.samples)
    generator = torch.Generator().manual_seed(run.samples)
    choices = training_combinations()
    weights = [OFTEN.get(item.motion, 1) for item in choices]
    while not run.finished:
        scene = scenes(chance.choices(choices, weights, k=BATCH), generator)
        pixels, fields = draw(scene) * 2 - 1, latents.draw_latents(scene).transpose(1, 2)
        weight = 1 + 4 * _near_object(scene)
        if run.progress < WHOLE_FROM:
            pixels, fields, weight = _window(scene, pixels, fields, weight, chance)
        noise = NOISE * chance.random() * torch.randn(fields.shape, generator=generator)
        with torch.autocast(device, torch.bfloat16):
            drawn = decode(model, (fields + noise).to(device))
        error = (drawn.float() - pixels.to(device)).square() + 0.1 * (drawn.float() - pixels.to(device)).abs()
        run.step((error * weight.to(device)).mean(), samples=BATCH)
    return run


def decode(model: AutoencoderKLCogVideoX, fields: Tensor) -> Tensor:
    """As `vae.decode` does it: an odd first piece, then pieces of two latent frames. (n, 16, t, h, w)."""
    count = fields.shape[2]
    cache, drawn, start = None, [], 0
    for end in range(2 + count % 2, count + 1, 2):
        frames, cache = model.decoder(fields[:, :, start:end], conv_cache=cache)
        drawn.append(frames)
        start = end
    return torch.cat(drawn, dim=2)


def _near_object(scene: Scenes) -> Tensor:
    """1 within one and a half times the object's radius, 0 elsewhere: (n, 1, 17, 96, 144)."""
    near: Tensor = object_coordinates(scene, pixel_grid()).norm(dim=-1) < 1.5
    return near.float()[:, None]


def _window(
    scene: Scenes, pixels: Tensor, fields: Tensor, weight: Tensor, chance: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Three latent frames of a part of the picture with the object in it, or a piece of it.

    The first then stands for a single frame, as a clip's first does.
    """
    start = chance.randrange(latents.LATENT_FRAMES - WINDOW + 1)
    x, y = (scene.centre[0, (start + chance.randrange(WINDOW)) * latents.GROUP] / latents.CELL).tolist()
    left = round(min(max(x - CROP[0] / 2, 0), latents.LATENT_WIDTH - CROP[0]))
    top = round(min(max(y - CROP[1] / 2, 0), latents.LATENT_HEIGHT - CROP[1]))
    fields = fields[:, :, start : start + WINDOW, top : top + CROP[1], left : left + CROP[0]].clone()
    fields[:, :2, 0] = fields[:, 2:4, 0]
    fields[:, 4, 0] = fields[:, 5, 0]
    frames = slice(start * latents.GROUP, (start + WINDOW - 1) * latents.GROUP + 1)
    rows = slice(top * latents.CELL, (top + CROP[1]) * latents.CELL)
    columns = slice(left * latents.CELL, (left + CROP[0]) * latents.CELL)
    return pixels[:, :, frames, rows, columns], fields, weight[:, :, frames, rows, columns]


def initialise(model: AutoencoderKLCogVideoX) -> None:
    """Spatial norms start as plain norms: the published default multiplies everything by almost nothing."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if name.endswith(("conv_y.conv", "conv_b.conv")):
                nn.init.normal_(module.weight, std=0.02)
            if name.endswith("conv_y.conv"):
                nn.init.ones_(module.bias)
            if name.endswith("conv2.conv"):
                with torch.no_grad():
                    module.weight.mul_(0.3)


def _optimisers(decoder: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the large convolutions, AdamW for all else."""
    large = [value for value in decoder.parameters() if value.ndim == 5 and value[0].numel() >= 128]
    kept = {id(value) for value in large}
    rest = [value for value in decoder.parameters() if id(value) not in kept]
    return [
        Muon(large, lr=0.02),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
