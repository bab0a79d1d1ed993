"""CogVideoX pipelines with random weights, made in place on the device: timing needs no download.

The shapes of the 5B are those of its published configuration (huggingface.co/zai-org/CogVideoX-5b): 5.57 billion
parameters in the transformer, 4.76 in the text encoder, 0.22 in the VAE.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel, T5Tokenizer

TEXT_TOKENS = 226


@dataclass(frozen=True)
class Shapes:
    """Settings that a model is built from, and the size of its clips in pixels."""

    transformer: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]
    width: int
    height: int


SHAPES = {
    "5B": Shapes(
        transformer={
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
            "sample_width": 90,
            "sample_height": 60,
            "sample_frames": 49,
        },
        text={
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "vocab_size": 32128,
        },
        vae={
            "block_out_channels": (128, 256, 256, 512),
            "layers_per_block": 3,
            "norm_num_groups": 32,
            "sample_width": 720,
            "sample_height": 480,
        },
        width=720,
        height=480,
    ),
    "tiny": Shapes(
        transformer={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 4,
            "text_embed_dim": 32,
            "time_embed_dim": 32,
            "use_rotary_positional_embeddings": True,
            "sample_width": 12,
            "sample_height": 8,
            "sample_frames": 17,
        },
        text={"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 128},
        vae={
            "block_out_channels": (8, 16, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "sample_width": 96,
            "sample_height": 64,
        },
        width=96,
        height=64,
    ),
}


def build(shapes: Shapes, *, device: torch.device, dtype: torch.dtype) -> CogVideoXPipeline:
    """The pipeline on the device, the same weights on every call."""
    pipe = CogVideoXPipeline(
        tokenizer=_tokenizer(),
        text_encoder=_filled(_text_encoder(shapes), device, dtype),
        vae=_filled(_vae(shapes), device, dtype),
        transformer=_filled(_transformer(shapes), device, dtype),
        scheduler=_scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def floating_point_operations(shapes: Shapes, frames: int) -> tuple[int, int]:
    """(of one step with guidance, of the VAE's decoding of the whole clip), counted on tensors without data."""
    latent_frames = (frames - 1) // 4 + 1
    height, width = shapes.height // 8, shapes.width // 8
    channels = 16
    with torch.device("meta"):
        transformer, vae = _transformer(shapes), _vae(shapes)
        latents = torch.empty(2, latent_frames, channels, height, width)
        text = torch.empty(2, TEXT_TOKENS, transformer.config.text_embed_dim)
        tokens = latent_frames * height * width // 4
        rotary = (torch.empty(tokens, transformer.config.attention_head_dim),) * 2
        with FlopCounterMode(display=False) as step, torch.no_grad():
            transformer(latents, text, torch.empty(2), image_rotary_emb=rotary)
        with FlopCounterMode(display=False) as decoding, torch.no_grad():
            vae.decode(torch.empty(1, channels, latent_frames, height, width))
    return step.get_total_flops(), decoding.get_total_flops()


def _filled(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """Random matrices that keep the size of what they are given, ones and zeros where norms and biases are.

    So nothing overflows, and every block has a part in the result, as in a trained model.
    """
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, values in module.named_parameters():
        if values.ndim > 1:
            spread = 0.02 if "embed_tokens" in name or "shared" in name else values[0].numel() ** -0.5
            values.normal_(0, spread, generator=generator)
        else:
            values.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


def _transformer(shapes: Shapes) -> CogVideoXTransformer3DModel:
    with torch.device("meta"):
        return CogVideoXTransformer3DModel(**shapes.transformer)


def _vae(shapes: Shapes) -> AutoencoderKLCogVideoX:
    with torch.device("meta"):
        return AutoencoderKLCogVideoX(latent_channels=16, scaling_factor=0.7, **shapes.vae)


def _text_encoder(shapes: Shapes) -> T5EncoderModel:
    config = T5Config(
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, **shapes.text
    )
    with torch.device("meta"):
        return T5EncoderModel(config)


def _tokenizer() -> T5Tokenizer:
    letters = [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0
    )


def _scheduler() -> CogVideoXDPMScheduler:
    return CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
