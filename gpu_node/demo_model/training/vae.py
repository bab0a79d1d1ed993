"""Training of the VAE: its decoder from drawn latents to pixels, its encoder the other way. Neither needs the other."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from gpu_node.demo_model import architecture, latents
from gpu_node.demo_model.renderer import Scenes, draw, object_coordinates, pixel_grid, scenes
from gpu_node.demo_model.training.optim import Run, autocast, moving_average, muon
from gpu_node.demo_model.vocabulary import training_combinations

BATCH = 2
NOISE = 0.15  # the most that is added to the latents, so that the decoder puts up with the transformer's small errors
WINDOW = 3  # latent frames: the VAE takes a clip in such pieces
OFTEN = {"bouncing": 4, "turning": 4, "right": 2, "left": 2, "up": 2, "down": 2}  # what moves fast is hardest
OFTEN |= {"star": 2, "heart": 2}  # and so are corners
CROP = (10, 8)  # cells across and down
LOOSE = 1.5  # cells by which the object may be off the middle of the part
SEEN_WEIGHT = 20.0  # of an error in the pixels, which are the smaller numbers, beside one in the latents
LOG_VARIANCE = -9.0  # what the encoder says of its own doubt, always: what it sees is drawn exactly

Part = Literal["decoder", "encoder"]
# Parts of the time that is spent. Single frames come first: they cost least. Pieces of clips next, and then whole
# clips, chunk by chunk with the cache between, as in use: the norms see a whole picture otherwise than a part of it.
# The encoder then also learns from what the decoder makes of its latents.
STILLS_UNTIL: dict[Part, float] = {"decoder": 0.0, "encoder": 0.4}
WHOLE_FROM: dict[Part, float] = {"decoder": 0.85, "encoder": 0.6}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Clips, or pieces of them, in pixels from −1 to 1 and in latents: (n, channels, frames, height, width)."""

    pixels: Tensor
    fields: Tensor
    near: Tensor  # 1 where a pixel is within one and a half times the object's radius, 0 elsewhere


def train(part: Part, *, folder: Path, seconds: float, device: str, start: Path | None = None) -> Run:
    """Train until the time is up, going on from `folder`/`part`.pt where there is one.

    `start`: a folder of weights to begin with, instead of from nothing.
    """
    torch.manual_seed(2)
    model = architecture.vae()
    initialise(model)
    half = model.decoder if part == "decoder" else model.encoder
    if start is not None:
        begun = AutoencoderKLCogVideoX.from_pretrained(start / "vae", dtype=torch.float32)
        half.load_state_dict(getattr(begun, part).state_dict())
    model.to(device)
    run = Run(
        file=folder / f"{part}.pt",
        seconds=seconds,
        model=half,
        optimisers=_optimisers(half),
        average=moving_average(half, decay=0.995),
    )
    torch.manual_seed(run.samples)
    precision, has_decoder = autocast(device), False
    for sample in _samples(run, device, part):
        if part == "encoder" and not has_decoder and run.progress >= WHOLE_FROM[part]:
            has_decoder = _borrow_decoder(model, folder, start)
        with precision:
            if part == "decoder":
                loss = _decoder_loss(model, sample)
            else:
                loss = _encoder_loss(model, sample, has_decoder=has_decoder)
        run.step(loss, samples=BATCH)
    return run


def _borrow_decoder(model: AutoencoderKLCogVideoX, folder: Path, start: Path | None) -> bool:
    """Load the decoder as far as it is trained, here or where training began; False when there is none."""
    checkpoint = folder / "decoder.pt"
    if checkpoint.is_file():
        kept = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
        model.decoder.load_state_dict(kept)
    elif start is not None:
        shipped = AutoencoderKLCogVideoX.from_pretrained(start / "vae", dtype=torch.float32)
        model.decoder.load_state_dict(shipped.decoder.state_dict())
    else:
        return False
    model.decoder.requires_grad_(False)
    return True


def _decoder_loss(model: AutoencoderKLCogVideoX, sample: Sample) -> Tensor:
    strength = NOISE * torch.rand_like(sample.fields[:, :1, :1, :1, :1])
    noisy = sample.fields + strength * torch.randn_like(sample.fields)
    error = decode(model, noisy).float() - sample.pixels
    loss: Tensor = ((error.square() + 0.1 * error.abs()) * (1 + 4 * sample.near)).mean()
    return loss


def _encoder_loss(model: AutoencoderKLCogVideoX, sample: Sample, *, has_decoder: bool) -> Tensor:
    """Return the error in the latents; with a decoder, weighed by what can be seen of it."""
    found = model.encode(sample.pixels).latent_dist.mode()
    near = latents.nearness(sample.fields.transpose(1, 2)).transpose(1, 2)
    loss: Tensor = ((found.float() - sample.fields).square() * (1 + 4 * near)).mean()
    if has_decoder:
        loss = loss + SEEN_WEIGHT * (decode(model, found).float() - sample.pixels).square().mean()
    return loss


def decode(model: AutoencoderKLCogVideoX, fields: Tensor) -> Tensor:
    """Decode as `vae.decode` does: an odd first piece, then pieces of two latent frames. (n, 16, t, h, w)."""
    count = fields.shape[2]
    cache, drawn, start = None, [], 0
    for end in range(2 + count % 2, count + 1, 2):
        frames, cache = model.decoder(fields[:, :, start:end], conv_cache=cache)
        drawn.append(frames)
        start = end
    return torch.cat(drawn, dim=2)


def _samples(run: Run, device: str, part: Part) -> Iterator[Sample]:
    """Draw one after another until the run is finished."""
    chance = random.Random(run.samples)
    generator = torch.Generator().manual_seed(run.samples)
    choices = training_combinations()
    weights = [OFTEN.get(item.motion, 1) * OFTEN.get(item.shape, 1) for item in choices]
    while not run.finished:
        picked = [scenes([item], generator) for item in chance.choices(choices, weights, k=BATCH)]
        clips = [piece for scene in picked for piece in _pieces(scene, run.progress, chance, part)]
        yield Sample(
            pixels=torch.cat([clip.pixels for clip in clips]).to(device),
            fields=torch.cat([clip.fields for clip in clips]).to(device),
            near=torch.cat([clip.near for clip in clips]).to(device),
        )


def _pieces(scene: Scenes, progress: float, chance: random.Random, part: Part) -> list[Sample]:
    """Cut the pieces of a clip that are learned from at this point of the run."""
    near = object_coordinates(scene, pixel_grid()).norm(dim=-1) < 1.5
    clip = Sample(
        pixels=draw(scene) * 2 - 1,
        fields=latents.draw_latents(scene).transpose(1, 2),
        near=near.float()[:, None],
    )
    if progress >= WHOLE_FROM[part]:
        return [clip]
    if progress < STILLS_UNTIL[part]:
        return [_window(scene, clip, chance, start=start, length=1) for start in range(latents.LATENT_FRAMES)]
    start = chance.randrange(0, latents.LATENT_FRAMES - WINDOW + 1, 2)  # even, or the clock ticks otherwise
    return [_window(scene, clip, chance, start=start, length=WINDOW)]


def _window(scene: Scenes, sample: Sample, chance: random.Random, *, start: int, length: int) -> Sample:
    """Cut `length` latent frames of a part of the picture with the object in it, or a piece of it.

    The first then stands for a single frame, as a clip's first does.
    """
    x, y = (scene.centre[0, (start + chance.randrange(length)) * latents.GROUP] / latents.CELL).tolist()
    x, y = x + chance.uniform(-LOOSE, LOOSE), y + chance.uniform(-LOOSE, LOOSE)
    left = round(min(max(x - CROP[0] / 2, 0), latents.LATENT_WIDTH - CROP[0]))
    top = round(min(max(y - CROP[1] / 2, 0), latents.LATENT_HEIGHT - CROP[1]))
    fields = sample.fields[:, :, start : start + length, top : top + CROP[1], left : left + CROP[0]].clone()
    fields[:, :2, 0] = fields[:, 2:4, 0]
    fields[:, 4, 0] = fields[:, 5, 0]
    frames = slice(start * latents.GROUP, (start + length - 1) * latents.GROUP + 1)
    rows = slice(top * latents.CELL, (top + CROP[1]) * latents.CELL)
    columns = slice(left * latents.CELL, (left + CROP[0]) * latents.CELL)
    piece = (..., frames, rows, columns)
    return Sample(pixels=sample.pixels[piece], fields=fields, near=sample.near[piece])


def initialise(model: AutoencoderKLCogVideoX) -> None:
    """Start spatial norms as plain norms: the published default multiplies everything by almost nothing."""
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
    # The second half of what the encoder says is its doubt; no loss asks for it, so it stays as it begins.
    conv = model.encoder.conv_out.conv
    with torch.no_grad():
        conv.weight[latents.CHANNELS :] = 0
        conv.bias[latents.CHANNELS :] = LOG_VARIANCE


def _optimisers(half: nn.Module) -> list[torch.optim.Optimizer]:
    """Use Muon for the large convolutions, AdamW for all else."""
    large = [value for value in half.parameters() if value.ndim == 5 and value[0].numel() >= 128]
    kept = {id(value) for value in large}
    rest = [value for value in half.parameters() if id(value) not in kept]
    return [muon(large, lr=0.01), torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)]
