"""Three-dimensional convolutions with few channels, on a CPU, as sums of two-dimensional ones.

The same arithmetic in another order (the sums differ by about 2e-6). Below 64 channels PyTorch's Conv3d has no fast
kernel for one clip at a time; the tiny model's decoder is 3.4 times as fast this way on one core, and from 64 channels
on it would be slower.
"""

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import nn
from torch.nn import functional

FEW_CHANNELS = 64


class SumOfConv2d(nn.Module):
    """Stands in for a Conv3d of stride 1 that pads height and width only, as all of CogVideoX's VAE do."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._padding = conv.padding[1:]

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames, height, width) → the same with frames − kernel + 1 frames."""
        depth = self.weight.shape[2]
        frames = video.transpose(1, 2)  # (batch, frames, channels, height, width)
        count = frames.shape[1] - depth + 1
        out: torch.Tensor | None = None
        for offset in range(depth):
            images = frames[:, offset : offset + count].flatten(0, 1)
            bias = self.bias if offset == 0 else None
            part = functional.conv2d(images, self.weight[:, :, offset], bias, padding=self._padding)
            out = part if out is None else out.add_(part)
        assert out is not None
        return out.reshape(frames.shape[0], count, *out.shape[1:]).transpose(1, 2)


def flatten_small_convolutions(vae: AutoencoderKLCogVideoX) -> None:
    """Replace what is faster so. For a VAE on the CPU; the weights stay where they are."""
    for layer in vae.modules():
        if isinstance(layer, CogVideoXCausalConv3d) and _is_worth_it(layer.conv):
            layer.conv = SumOfConv2d(layer.conv)


def _is_worth_it(conv: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv3d) or any(step != 1 for step in (*conv.stride, *conv.dilation)):
        return False
    return conv.padding[0] == 0 and max(conv.in_channels, conv.out_channels) < FEW_CHANNELS
