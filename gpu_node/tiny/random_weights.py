"""Builds the tiny CogVideoX with random weights: every part is the class the 5B uses, only smaller.

0.3 million parameters, 1.4 MB, native size 96×64 and 17 frames. Its clips are coloured noise.
"""

import string

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

SEED = 20240806
TEXT_WIDTH = 32
WIDTH, HEIGHT, FRAMES = 96, 64, 17
SPATIAL_COMPRESSION = 8


def build_pipeline() -> CogVideoXPipeline:
    """The whole pipeline, the same weights on every call with the same torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        tokenizer = _tokenizer()
        return CogVideoXPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_vae(),
            transformer=_transformer(),
            scheduler=_scheduler(),
        )


def _tokenizer() -> T5Tokenizer:
    """Letters, digits and punctuation; T5's unigram model prefers a letter joined to the word's start."""
    letters = string.ascii_lowercase + string.digits
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -4.0) for letter in letters + ".,;:'\"!?-()&/"]
    vocabulary += [(f"▁{letter}", -4.5) for letter in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def _text_encoder(vocabulary_size: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def _vae() -> AutoencoderKLCogVideoX:
    """Four blocks as in the 5B: 8× in space and 4× in time depend on their number."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 16, 16, 16),
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=HEIGHT,
        sample_width=WIDTH,
    )


def _transformer() -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=32,
        sample_width=WIDTH // SPATIAL_COMPRESSION,
        sample_height=HEIGHT // SPATIAL_COMPRESSION,
        sample_frames=FRAMES,
        use_rotary_positional_embeddings=True,
    )


def _scheduler() -> CogVideoXDPMScheduler:
    """The 5B's published noise schedule."""
    return CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
