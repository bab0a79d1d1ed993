"""The parts of the demonstration model: every one is the class that the 5B uses, only smaller.

Each takes `changes` to its settings, by which random_weights.py makes it smaller still.
"""

import string
from collections.abc import Sequence
from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from gpu_node.tiny import latents, renderer, vocabulary

TEXT_WIDTH = 128


def pipeline() -> CogVideoXPipeline:
    """The whole pipeline, untrained: 4 million parameters, native size 144×96, 17 frames."""
    words = tokenizer()
    return CogVideoXPipeline(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        vae=vae(),
        transformer=transformer(),
        scheduler=scheduler(),
    )


def tokenizer(pieces: Sequence[tuple[str, float]] | None = None) -> T5Tokenizer:
    """One token a word. What is no word of the vocabulary becomes <unk>, whatever its length.

    `pieces`: others than the words, with their log probabilities; ▁ stands for a space.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *(_words() if pieces is None else pieces)], extra_ids=0)


def _words() -> list[tuple[str, float]]:
    return [(f"▁{word}", -1.0) for word in vocabulary.words()] + [(mark, -1.0) for mark in string.punctuation]


def text_encoder(vocabulary_size: int, **changes: Any) -> T5EncoderModel:
    """Two layers: enough to tell which adjective belongs to which noun."""
    settings = {
        "d_model": TEXT_WIDTH,
        "d_kv": 32,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
    }
    return T5EncoderModel(T5Config(vocab_size=vocabulary_size, **settings | changes))


def vae(**changes: Any) -> AutoencoderKLCogVideoX:
    """Four blocks as in the 5B: 8× in space and 4× in time depend on their number."""
    settings = {
        "block_out_channels": (16, 16, 32, 64),
        "latent_channels": latents.CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_height": renderer.HEIGHT,
        "sample_width": renderer.WIDTH,
        "scaling_factor": 1.0,
    }
    return AutoencoderKLCogVideoX(**settings | changes)


def transformer(**changes: Any) -> CogVideoXTransformer3DModel:
    """Patches of 2×3×3 cells keep a clip at 72 tokens; smooth latents lose nothing by it."""
    settings = {
        "num_attention_heads": 5,
        "attention_head_dim": 32,
        "num_layers": 4,
        "in_channels": latents.CHANNELS,
        "out_channels": latents.CHANNELS,
        "time_embed_dim": 128,
        "text_embed_dim": TEXT_WIDTH,
        "max_text_seq_length": vocabulary.MAX_TOKENS,
        "sample_width": latents.LATENT_WIDTH,
        "sample_height": latents.LATENT_HEIGHT,
        "sample_frames": renderer.FRAMES,
        "patch_size": 3,
        "patch_size_t": 2,
        "use_rotary_positional_embeddings": True,
    }
    return CogVideoXTransformer3DModel(**settings | changes)


def scheduler(**changes: Any) -> CogVideoXDPMScheduler:
    """The published noise schedule with the 2B's shift; the model predicts the clean latents themselves.

    A token holds 288 numbers and the model is 160 wide. Noise of 288 dimensions does not fit through it, so predicting
    noise or velocity leaves speckle; clean latents of this kind do fit.
    """
    settings = {
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": "sample",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 3.0,
        "timestep_spacing": "trailing",
    }
    return CogVideoXDPMScheduler(**settings | changes)
