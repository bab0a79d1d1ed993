"""Training of the text encoder and the transformer, together on drawn latents."""

import random
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from transformers import T5EncoderModel

from gpu_node.demo_model import architecture, latents
from gpu_node.demo_model.renderer import scenes
from gpu_node.demo_model.training.optim import Run, autocast, moving_average, muon
from gpu_node.demo_model.vocabulary import MAX_TOKENS, Combination, training_combinations, vary

BATCH = 32
WITHOUT_CAPTION = 0.08  # of the clips, so that guidance has something to compare with
LENGTHS = {9: 1, 17: 4, 33: 2, 49: 3}  # frames of a clip, and how often
OFTEN = {"turning": 4}  # the hardest to learn: every cell's coordinates change from frame to frame
PRECISION_LIMIT = 8.0  # how much more an error counts at the least noise than at the most


class TextToLatents(nn.Module):
    """The way from noisy latents, tokens and timesteps to the clean latents."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: CogVideoXTransformer3DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(self, noisy: Tensor, tokens: Tensor, times: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        """`noisy`: (n, l + 1, 16, 12, 18); `tokens`: (n, 16); `times`: (n,). No mask, as the pipeline has none."""
        text = self.text_encoder(input_ids=tokens, return_dict=False)[0]
        answer: Tensor = self.transformer(noisy, text, times, image_rotary_emb=place, return_dict=False)[0]
        return answer


@lru_cache
def places(frames: int, device: str) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each token's place in a clip of so many frames, as the pipeline computes them."""
    config = architecture.transformer().config
    grid = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        crops_coords=None,
        grid_size=grid,
        temporal_size=(latents.length(frames) + 1) // config.patch_size_t,
        grid_type="slice",
        max_size=grid,
        device=device,
    )
    return cos, sin


def train(
    *, folder: Path, seconds: float, device: str, start: Path | None = None, compiled: bool = True
) -> Run:
    """Train until the time is up, going on from `folder`/transformer.pt where there is one.

    `start`: a folder of weights to begin with, instead of from nothing. Compiling takes minutes and makes each step
    twice as fast.
    """
    torch.manual_seed(1)
    words = architecture.tokenizer()
    if start is None:
        model = TextToLatents(architecture.text_encoder(len(words)), architecture.transformer())
        initialise(model)
    else:
        model = TextToLatents(
            T5EncoderModel.from_pretrained(start / "text_encoder", dtype=torch.float32),
            CogVideoXTransformer3DModel.from_pretrained(start / "transformer", dtype=torch.float32),
        )
    model.to(device)
    run = Run(
        file=folder / "transformer.pt",
        seconds=seconds,
        model=model,
        optimisers=_optimisers(model),
        average=moving_average(model, decay=0.998),
    )
    chance = random.Random(run.samples)
    generator = torch.Generator().manual_seed(run.samples)
    forward = torch.compile(model, dynamic=False) if compiled else model
    keep = architecture.scheduler().alphas_cumprod.float().to(device)
    choices = training_combinations()
    weights = [OFTEN.get(item.motion, 1) for item in choices]
    precision = autocast(device)
    while not run.finished:
        picked = chance.choices(choices, weights, k=BATCH)
        [frames] = chance.choices(list(LENGTHS), list(LENGTHS.values()))
        clean = pad(latents.draw_latents(scenes(picked, generator, frames=frames))).to(device)
        tokens = _tokens(words, picked, chance).to(device)
        # One timestep out of each of the batch's equal parts of the schedule.
        part = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        times = (part * 1000).long().clamp(max=999).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        kept = keep[times][:, None, None, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        with precision:
            answer = forward(noisy, tokens, times, places(frames, device))
        run.step(_loss(answer.float(), clean, kept), samples=BATCH)
    return run


def pad(clean: Tensor) -> Tensor:
    """Double the first latent frame, as the pipeline does: the temporal patch asks for an even number."""
    return torch.cat((clean[:, :1], clean), dim=1)


def _loss(answer: Tensor, clean: Tensor, kept: Tensor) -> Tensor:
    """Return the squared error of the clean latents, dearer where there is little noise and around the object."""
    precision = (1 / (1 - kept)).clamp(max=PRECISION_LIMIT)
    attention = 1 + 2 * latents.nearness(clean)
    error = (answer - clean).square() * attention * precision
    return error.mean()


def _tokens(words: object, picked: list[Combination], chance: random.Random) -> Tensor:
    captions = ["" if chance.random() < WITHOUT_CAPTION else vary(item, chance) for item in picked]
    encoded = words(  # type: ignore[operator]
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    tokens: Tensor = encoded.input_ids
    return tokens


def initialise(model: TextToLatents) -> None:
    """Start each block almost as the identity, and the answer as nothing."""
    nn.init.normal_(model.text_encoder.shared.weight)
    for name, module in model.transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(
            ("norm1.linear", "norm2.linear", "norm_out.linear")
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            if "blocks" in name:
                with torch.no_grad():  # shift, scale and gate of the picture, then of the text
                    parts = module.bias.view(6, -1)
                    parts[2] = parts[5] = 0.3  # the gates let a third through
    nn.init.zeros_(model.transformer.proj_out.weight)
    nn.init.zeros_(model.transformer.proj_out.bias)


def _optimisers(model: TextToLatents) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices inside the blocks, AdamW for all else."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = ("transformer_blocks" in name or "encoder.block" in name) and "norm" not in name
        is_matrix = parameter.ndim == 2 and "relative_attention_bias" not in name
        (inner if inside and is_matrix else outer).append(parameter)
    adam = torch.optim.AdamW(outer, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon(inner, lr=0.02), adam]
