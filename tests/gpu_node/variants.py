"""The shapes of the published models at tiny size, as folders in the format in which they are published."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from gpu_node.demo_model.architecture import random_pipeline

# What sets each model apart from the 5B, from its config.json on huggingface.co/zai-org.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "CogVideoX-5B": {},
    "CogVideoX-2B": {"use_rotary_positional_embeddings": False},
    "CogVideoX-5B-I2V": {"in_channels": 32, "use_learned_positional_embeddings": True},
    "CogVideoX1.5-5B": {"patch_size_t": 2, "patch_bias": False},
    "CogVideoX1.5-5B-I2V": {"in_channels": 32, "patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 32},
}


def build(name: str, *, layers: int = 2) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """The model's architecture with the tiny model's widths and random weights, ready for inference."""
    pipe = random_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        tiny = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
        config = tiny | ARCHITECTURES[name] | {"num_layers": layers}
        transformer = CogVideoXTransformer3DModel.from_config(config)
    kind = CogVideoXImageToVideoPipeline if "I2V" in name else CogVideoXPipeline
    made = kind(
        tokenizer=pipe.tokenizer,
        text_encoder=pipe.text_encoder.eval(),
        vae=pipe.vae.eval(),
        transformer=transformer.eval(),
        scheduler=CogVideoXDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing"),
    )
    made.set_progress_bar_config(disable=True)
    return made


def save(name: str, folder: Path, *, layers: int = 2) -> Path:
    """The same in a folder."""
    build(name, layers=layers).save_pretrained(folder)
    return folder
