"""The VAE: decodes bit by bit what diffusers decodes, in pieces and with less memory, or in tiles for want of it."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXSpatialNorm3D,
)
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Pieces: TypeAlias = Iterator[NDArray[np.uint8]]
FEW_CHANNELS = 64


def set_up(vae: AutoencoderKLCogVideoX, device: torch.device) -> None:
    """Make it decode with less memory and, on this device, faster. Call it before the weights move."""
    _make_tiles_fit(vae)
    if device.type == "cpu":
        flatten_small_convolutions(vae)
    else:
        torch.backends.cudnn.benchmark = True  # the kernels for a clip's few shapes are chosen by their times
    for layer in vae.modules():
        if type(layer) is CogVideoXSpatialNorm3D:
            layer.__class__ = SpatialNorm
        elif isinstance(layer, nn.Conv3d) and device.type != "cpu":
            # `vae.to(memory_format=…)` raises, for the upsamplers' weights have four dimensions.
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def decode(vae: AutoencoderKLCogVideoX, latents: torch.Tensor, *, tiled: bool) -> Pieces:
    """(1, channels, frames, height, width) of latents → pieces, (count, height, width, 3), RGB; of tiles only one."""
    if tiled:
        before, vae.use_tiling = vae.use_tiling, True
        try:
            yield _to_frames(vae.decode(latents).sample)
        finally:
            vae.use_tiling = before
        return
    cache = None
    for piece in _pieces(latents, vae.num_latent_frames_batch_size):
        piece = piece if vae.post_quant_conv is None else vae.post_quant_conv(piece)
        pixels, cache = vae.decoder(piece, conv_cache=cache)
        yield _to_frames(pixels)


class SpatialNorm(CogVideoXSpatialNorm3D):
    """diffusers' norm, bit by bit, with which the decoding takes 10 GB at its peak at 720×480, instead of 16.

    diffusers enlarges the latents before its convolutions of one pixel instead of after them, and keeps the whole
    input of each for the next piece, which reads nothing of it.
    """

    def forward(
        self, f: torch.Tensor, zq: torch.Tensor, conv_cache: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(batch, channels, frames, height, width) and the latents → the first's shape, and nothing to be kept."""
        out = self.norm_layer(f)
        factor, offset = self.conv_y.conv(zq), self.conv_b.conv(zq)
        # Of an odd count, the first frame is made of the first latent, and the others of the others.
        is_odd = f.shape[2] > 1 and f.shape[2] % 2 == 1
        for frames in (slice(0, 1), slice(1, None)) if is_odd else (slice(None),):
            part = out[:, :, frames]
            part *= functional.interpolate(factor[:, :, frames], size=part.shape[-3:])
            part += functional.interpolate(offset[:, :, frames], size=part.shape[-3:])
        return out, {}


class FlatConv(nn.Module):
    """Stand-in for a Conv3d of stride 1 that pads height and width only, as all of CogVideoX's VAE do.

    The same arithmetic in another order (the sums differ by about 2e-6), with frames side by side as channels. Below 64
    channels PyTorch's Conv3d has no fast kernel for one clip at a time; the tiny model's decoder is 4 times as fast
    this way on one core, and from 64 channels on it would be slower.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._padding = conv.padding[1:]

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames, height, width) → the same with frames − kernel + 1 frames."""
        frames, depth = video.transpose(1, 2), self.weight.shape[2]
        count = frames.shape[1] - depth + 1
        images = torch.cat([frames[:, first : first + count] for first in range(depth)], dim=2).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        out = functional.conv2d(images, weight, self.bias, padding=self._padding)
        return out.reshape(-1, count, *out.shape[1:]).transpose(1, 2)


def flatten_small_convolutions(vae: AutoencoderKLCogVideoX) -> None:
    """Replace what is faster so. For a VAE on the CPU; the weights stay where they are."""
    for layer in vae.modules():
        if not isinstance(layer, CogVideoXCausalConv3d) or not isinstance(layer.conv, nn.Conv3d):
            continue
        conv = layer.conv
        is_plain = conv.padding[0] == 0 and all(step == 1 for step in (*conv.stride, *conv.dilation))
        if is_plain and max(conv.in_channels, conv.out_channels) < FEW_CHANNELS:
            layer.conv = FlatConv(conv)


def _make_tiles_fit(vae: AutoencoderKLCogVideoX) -> None:
    """Cut tiles whose overlaps are whole latents. As diffusers cuts them, that is so at the published sizes only."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    sides = (
        (vae.tile_latent_min_height, vae.tile_sample_min_height, vae.tile_overlap_factor_height),
        (vae.tile_latent_min_width, vae.tile_sample_min_width, vae.tile_overlap_factor_width),
    )
    if any(int(tile * (1 - lap)) * scale != pixels - int(pixels * lap) for tile, pixels, lap in sides):
        vae.enable_tiling(*(max(2, tile // 2 * 2) * scale for tile, _, _ in sides), 0.5, 0.5)
        vae.disable_tiling()


def _pieces(latents: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Cut `size` latent frames at a time, as the VAE's own decoding does; an odd one belongs to the first piece."""
    first = size + latents.shape[2] % size if latents.shape[2] >= size else latents.shape[2]
    yield latents[:, :, :first]
    yield from torch.split(latents[:, :, first:], size, dim=2) if latents.shape[2] > first else ()


def _to_frames(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """(1, 3, count, height, width) from −1 to 1 → (count, height, width, 3) in bytes."""
    scaled = (pixels[0].float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    frames: NDArray[np.uint8] = scaled.permute(1, 2, 3, 0).cpu().numpy()
    return frames
