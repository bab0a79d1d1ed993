"""Whole denoising steps that are left out: a step whose time hardly differs adds what the last computed one added.

TeaCache (https://arxiv.org/abs/2411.19108) judges a step of CogVideoX by its time embedding alone, so which steps are
computed follows from their number, and is known before a clip begins. Unlike a cache of attention it keeps one result
(0.44 GB for the 5B's long clips), works above compiled blocks, and takes any guidance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn

# How far the model may drift, by its own measure, before a step is computed: TeaCache's three settings for CogVideoX.
THRESHOLDS = {"skip_light": 0.10, "skip": 0.15, "skip_strong": 0.20}

PICTURE_OFFSET = 2.0  # what diffusers' pipeline gives CogVideoX1.5-5B-I2V


class SkippingBlocks(nn.Module):
    """All blocks of a transformer in place of one; in steps that are left out, what they added the last time."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks
        self.begin([])

    def begin(self, mask: Sequence[bool]) -> None:
        """Forget the clip before. mask: of each step of the next one, whether it is computed; all where it is empty."""
        self._mask, self._step = mask, 0
        self._added: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, video tokens, width), (batch, text tokens, width) → the same shapes."""
        is_computed = self._added is None or not self._mask or self._mask[self._step]
        self._step += 1
        if not is_computed:
            assert self._added is not None
            return hidden_states + self._added[0], encoder_hidden_states + self._added[1]
        video, text = hidden_states, encoder_hidden_states
        for block in self.blocks:
            video, text = block(hidden_states=video, encoder_hidden_states=text, **rest)
        self._added = (video - hidden_states, text - encoder_hidden_states) if self._mask else None
        return video, text


def install(transformer: CogVideoXTransformer3DModel) -> SkippingBlocks:
    """Put the blocks of the transformer behind one module that may leave them out."""
    stack = SkippingBlocks(transformer.transformer_blocks)
    transformer.transformer_blocks = nn.ModuleList([stack])
    return stack


@torch.no_grad()
def mask_of(
    transformer: CogVideoXTransformer3DModel,
    times: torch.Tensor,
    coefficients: Sequence[float],
    *,
    strength: str,
) -> list[bool]:
    """Return of each of these times whether its step is computed; the first and the last always are.

    coefficients: TeaCache's polynomial for the model, which turns the change of the time embedding into that of the
    result.
    """
    weight = transformer.time_embedding.linear_1.weight
    embedding = transformer.time_embedding(
        transformer.time_proj(times.to(weight.device)).to(weight.dtype)
    ).float()
    if transformer.ofs_embedding is not None:
        offset = torch.full((1,), PICTURE_OFFSET, device=weight.device)
        embedding += transformer.ofs_embedding(transformer.ofs_proj(offset).to(weight.dtype)).float()
    changes = (embedding[1:] - embedding[:-1]).abs().mean(1) / embedding[:-1].abs().mean(1)
    mask, drift = [True], 0.0
    for change in np.polyval(coefficients, changes.cpu().numpy()):
        drift += float(change)
        mask.append(drift >= THRESHOLDS[strength])
        drift = 0.0 if mask[-1] else drift
    return [*mask[:-1], True]
