"""The embedded models: `tiny`, which draws what its small vocabulary says, and `tiny-random` for tests.

docs/embedded-model.md shows what the first can do. Every part is of the class that CogVideoX-5B uses, only smaller.
Each takes `changes` to its settings, by which `random_pipeline` makes it smaller still.
"""

import shutil
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from gpu_node.demo_model import latents, renderer, vocabulary

TRAINED = Path(__file__).parent / "weights"
RECIPE = "tiny-random-1"  # a new name whenever `random_pipeline` changes, so that an old copy is not used
TEXT_WIDTH = 128
RANDOM_SEED = 20240806
RANDOM_TEXT_WIDTH = 32
RANDOM_WIDTH, RANDOM_HEIGHT = 96, 64


def model_folder(model: str, cache_dir: Path) -> Path:
    """Return the folder for `CogVideoXPipeline.from_pretrained`: `tiny` is shipped, `tiny-random` built on first use.

    Safe for several processes at once: each builds in a folder of its own, and the first rename wins.
    """
    if model == "tiny":
        return TRAINED
    folder = cache_dir / RECIPE
    if (folder / "model_index.json").is_file():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache_dir))
    try:
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide the model from a node run by another user
        random_pipeline().save_pretrained(scratch)
        scratch.rename(folder)
    except OSError:
        if not (folder / "model_index.json").is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def pipeline() -> CogVideoXPipeline:
    """Make the demonstration model, untrained: 4 million parameters, native size 144×96, 17 frames."""
    words = tokenizer()
    return CogVideoXPipeline(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        vae=vae(),
        transformer=transformer(),
        scheduler=scheduler(),
    )


def random_pipeline() -> CogVideoXPipeline:
    """Make the model with random weights, nearer to the published ones; the same on every call with the same torch.

    0.3 million parameters, 1.4 MB, native size 96×64 and 17 frames. Its clips are coloured noise.
    """
    letters = string.ascii_lowercase + string.digits
    # T5's unigram model prefers a letter joined to the word's start.
    pieces = [(letter, -4.0) for letter in letters + ".,;:'\"!?-()&/"]
    pieces += [(f"▁{letter}", -4.5) for letter in letters]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        words = tokenizer(pieces)
        return CogVideoXPipeline(
            tokenizer=words,
            text_encoder=text_encoder(len(words), d_model=RANDOM_TEXT_WIDTH, d_kv=16, d_ff=64, num_heads=2),
            vae=vae(
                block_out_channels=(8, 16, 16, 16),
                sample_height=RANDOM_HEIGHT,
                sample_width=RANDOM_WIDTH,
                scaling_factor=1.15258426,  # the 2B's
            ),
            transformer=transformer(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                time_embed_dim=32,
                text_embed_dim=RANDOM_TEXT_WIDTH,
                max_text_seq_length=226,
                sample_width=RANDOM_WIDTH // latents.CELL,
                sample_height=RANDOM_HEIGHT // latents.CELL,
                patch_size=2,
                patch_size_t=None,
            ),
            # the 5B's published noise schedule
            scheduler=scheduler(prediction_type="v_prediction", snr_shift_scale=1.0),
        )


def tokenizer(pieces: Sequence[tuple[str, float]] | None = None) -> T5Tokenizer:
    """Make a tokenizer of one token a word. A word outside the vocabulary becomes <unk>, whatever its length.

    `pieces`: others than the words, with their log probabilities; ▁ stands for a space.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    if pieces is None:
        pieces = [(f"▁{word}", -1.0) for word in vocabulary.words()]
        pieces += [(sign, -1.0) for sign in string.punctuation]
    return T5Tokenizer(vocab=[*special, *pieces], extra_ids=0)


def text_encoder(vocabulary_size: int, **changes: Any) -> T5EncoderModel:
    """Make a text encoder of two layers: enough to tell which adjective belongs to which noun."""
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
    """Make a VAE of four blocks as in the 5B: 8× in space and 4× in time depend on their number."""
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
    """Make a transformer whose patches of 2×3×3 cells keep a clip at 72 tokens; smooth latents lose nothing by it."""
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
    """Make the published noise schedule with the 2B's shift; the model predicts the clean latents themselves.

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
