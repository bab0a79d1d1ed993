"""The parts of the demonstration model: every one is the class that the 5B uses, only smaller."""

import string

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


def tokenizer() -> T5Tokenizer:
    """One token a word. What is no word of the vocabulary becomes <unk>, whatever its length."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in vocabulary.words()]
    pieces += [(mark, -1.0) for mark in string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def text_encoder(vocabulary_size: int) -> T5EncoderModel:
    """Two layers: enough to tell which adjective belongs to which noun."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def vae() -> AutoencoderKLCogVideoX:
    """Four blocks as in the 5B: 8× in space and 4× in time depend on their number."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(16, 16, 32, 64),
        latent_channels=latents.CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=renderer.HEIGHT,
        sample_width=renderer.WIDTH,
        scaling_factor=1.0,
    )


def transformer() -> CogVideoXTransformer3DModel:
    """Patches of 2×3×3 cells keep a clip at 72 tokens; smooth latents lose nothing by it."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        num_layers=4,
        in_channels=latents.CHANNELS,
        out_channels=latents.CHANNELS,
        time_embed_dim=128,
        text_embed_dim=TEXT_WIDTH,
        max_text_seq_length=vocabulary.MAX_TOKENS,
        sample_width=latents.LATENT_WIDTH,
        sample_height=latents.LATENT_HEIGHT,
        sample_frames=renderer.FRAMES,
        patch_size=3,
        patch_size_t=2,
        use_rotary_positional_embeddings=True,
    )


def scheduler() -> CogVideoXDPMScheduler:
    """The published noise schedule with the 2B's shift; the model predicts the clean latents themselves.

    A token holds 288 numbers and the model is 160 wide. Noise of 288 dimensions does not fit through it, so predicting
    noise or velocity leaves speckle; clean latents of this kind do fit.
    """
    return CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
