"""Builds the CogVideoX with random weights: the demonstration model, smaller still and nearer to the published ones.

0.3 million parameters, 1.4 MB, native size 96×64 and 17 frames. Its clips are coloured noise.
"""

import string

import torch
from diffusers import CogVideoXPipeline

from gpu_node.tiny import architecture

SEED = 20240806
TEXT_WIDTH = 32
WIDTH, HEIGHT = 96, 64
SPATIAL_COMPRESSION = 8


def build_pipeline() -> CogVideoXPipeline:
    """The whole pipeline, the same weights on every call with the same torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tokenizer = architecture.tokenizer(_letters())
        return CogVideoXPipeline(
            tokenizer=tokenizer,
            text_encoder=architecture.text_encoder(
                len(tokenizer), d_model=TEXT_WIDTH, d_kv=16, d_ff=64, num_heads=2
            ),
            vae=architecture.vae(
                block_out_channels=(8, 16, 16, 16),
                sample_height=HEIGHT,
                sample_width=WIDTH,
                scaling_factor=1.15258426,  # the 2B's
            ),
            transformer=architecture.transformer(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                time_embed_dim=32,
                text_embed_dim=TEXT_WIDTH,
                max_text_seq_length=226,
                sample_width=WIDTH // SPATIAL_COMPRESSION,
                sample_height=HEIGHT // SPATIAL_COMPRESSION,
                patch_size=2,
                patch_size_t=None,
            ),
            # the 5B's published noise schedule
            scheduler=architecture.scheduler(prediction_type="v_prediction", snr_shift_scale=1.0),
        )


def _letters() -> list[tuple[str, float]]:
    """Letters, digits and punctuation; T5's unigram model prefers a letter joined to the word's start."""
    letters = string.ascii_lowercase + string.digits
    pieces = [(letter, -4.0) for letter in letters + ".,;:'\"!?-()&/"]
    return pieces + [(f"▁{letter}", -4.5) for letter in letters]
