"""What a model takes, counted on tensors without data at the published sizes; and decoding with less, bit by bit."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_shapes import SHAPES, _filled, _text_encoder, _transformer, _vae
from gpu_node import catalog
from gpu_node.catalog import GB, PUBLISHED, Traits
from gpu_node.engine import attention, quantization, vae
from tests.gpu_node import variants

# What the tests' small variants have otherwise than the published models, by their config.json.
SIZES: dict[str, dict[str, Any]] = {
    "CogVideoX-5B": {},
    "CogVideoX-2B": {"num_attention_heads": 30, "num_layers": 30},
    "CogVideoX-5B-I2V": {},
    "CogVideoX1.5-5B": {"sample_width": 170, "sample_height": 96, "sample_frames": 81},
    "CogVideoX1.5-5B-I2V": {
        "sample_width": 170,
        "sample_height": 96,
        "sample_frames": 81,
        "ofs_embed_dim": 512,
    },
}
WITHOUT_DATA: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two on a busy machine take many times as long for what is so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counter(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it and still there: `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            storage = each.untyped_storage() if torch.is_tensor(each) and each.is_meta else None
            if storage is not None and storage._cdata not in self._known and not func.is_view:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.live -= size


@torch.no_grad()
def peak_gb(work: Callable[[], object]) -> float:
    with Counter() as counter:
        work()
    return counter.peak / GB


class NoScores(TorchFunctionMode):
    """Attention as a kernel does it: without the scores of all tokens for all, which no memory would hold."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if kwargs and "query" in kwargs else args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def pieces_of(model: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    """All frames, decoded in pieces as the node does it; `vae.decode` gives them in bytes, which hide what differs."""
    pixels, cached = [], None
    for piece in vae._pieces(latents, model.num_latent_frames_batch_size):
        out, cached = model.decoder(piece, conv_cache=cached)
        pixels.append(out)
    return torch.cat(pixels, dim=2)


def mini(dtype: torch.dtype = torch.float32) -> AutoencoderKLCogVideoX:
    """One from diffusers as it comes, the same on every call."""
    made: AutoencoderKLCogVideoX = _filled(_vae(SHAPES["tiny"]), torch.device("cpu"), dtype)
    return made


def lean(model: AutoencoderKLCogVideoX) -> None:
    """Set it up as on the CPU, but for the convolutions, whose sums have another order there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "FEW_CHANNELS", 0)
        vae.set_up(model, torch.device("cpu"))
    assert any(isinstance(layer, vae.SpatialNorm) for layer in model.modules())


def random_latents(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 16, frames, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [4, 5])
def test_a_decoding_with_less_memory_is_that_of_diffusers_bit_by_bit(dtype: torch.dtype, frames: int) -> None:
    """As a whole, in pieces and in tiles."""
    latents, ours, theirs = random_latents(frames, dtype), mini(dtype), mini(dtype)
    lean(ours)

    with torch.no_grad():
        whole = theirs.decode(latents).sample
        assert torch.equal(ours.decode(latents).sample, whole)
        assert torch.equal(pieces_of(ours, latents), whole)
        vae._make_tiles_fit(theirs)  # at this size its own have seams
        ours.enable_tiling(), theirs.enable_tiling()
        tiled = theirs.decode(latents).sample
        assert torch.equal(ours.decode(latents).sample, tiled)
    assert not torch.equal(tiled, whole)
    assert numpy.array_equal(next(vae.decode(ours, latents, tiled=True)), vae._to_frames(tiled))


def test_at_its_peak_the_decoding_takes_10_gigabytes_where_diffusers_takes_16() -> None:
    """Of 49 frames of 720×480, whose peak is in their second piece."""
    latents = torch.empty(1, 16, 5, 60, 90, dtype=torch.bfloat16, device="meta")
    model = _vae(SHAPES["5B"]).to(torch.bfloat16)

    assert peak_gb(lambda: pieces_of(model, latents)) == pytest.approx(15.8, rel=0.01)
    lean(model)
    assert peak_gb(lambda: pieces_of(model, latents)) < 10.2


def test_for_a_gpu_the_weights_lie_as_its_kernels_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    ours, latents = mini(), random_latents(5)
    vae.set_up(ours, torch.device("cuda"))

    weights = [layer.weight for layer in ours.modules() if isinstance(layer, torch.nn.Conv3d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)
    assert torch.backends.cudnn.benchmark
    assert torch.allclose(pieces_of(ours, latents), pieces_of(mini(), latents), atol=1e-4)


def weights_gb(module: torch.nn.Module) -> float:
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers())) / GB


def step_gb(transformer: Any, traits: Traits, latents: torch.Tensor) -> float:
    """Of one step with guidance; every block takes the same, so that two are enough."""
    config, transformer.transformer_blocks = transformer.config, transformer.transformer_blocks[:2]
    together = config.patch_size_t or 1
    frames = -(-latents.shape[2] // together) * together
    sample = torch.empty(2, frames, config.in_channels, *latents.shape[3:], **WITHOUT_DATA)
    text = torch.empty(2, config.max_text_seq_length, config.text_embed_dim, **WITHOUT_DATA)
    tokens = frames // together * latents.shape[3] * latents.shape[4] // 4
    rotary = (torch.empty(tokens, config.attention_head_dim, device="meta"),) * 2
    extra = {"image_rotary_emb": rotary} if config.use_rotary_positional_embeddings else {}
    extra |= {"ofs": torch.empty(2, device="meta")} if config.ofs_embed_dim else {}
    with NoScores():
        return peak_gb(lambda: transformer(sample, text, torch.empty(2, device="meta"), **extra))


def faster_cache_gb(blocks: int, tokens: int, channels: int) -> float:
    """FasterCache keeps the last two results of every attention, in 16 bits, with guidance."""
    return 2 * blocks * 2 * tokens * channels * 2 / GB


def tiles_gb(model: AutoencoderKLCogVideoX, latents: torch.Tensor) -> float:
    """Of decoding in tiles. Only the last of the whole ones is decoded: the others would be the same again."""
    decode, tiles = model.decoder.forward, [0, 0]  # whole ones: that came, that there are

    def forward(tile: torch.Tensor, conv_cache: Any = None) -> Any:
        is_whole = tile.shape[3:] == (model.tile_latent_min_height, model.tile_latent_min_width)
        tiles[0] += is_whole and conv_cache is None
        if is_whole and tiles[0] == tiles[1]:
            return decode(tile, conv_cache=conv_cache)
        count = 4 * tile.shape[2] - (3 if conv_cache is None and tile.shape[2] % 2 else 0)
        return torch.empty(1, 3, count, 8 * tile.shape[3], 8 * tile.shape[4], **WITHOUT_DATA), True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.decoder, "forward", forward)
        patch.setattr(model, "blend_v", lambda _, tile, __: tile)  # row by row, in place
        patch.setattr(model, "blend_h", lambda _, tile, __: tile)
        model.enable_tiling()
        model.decode(latents)
        tiles[:] = 0, tiles[0]
        return peak_gb(lambda: model.decode(latents))


@pytest.mark.parametrize("traits", PUBLISHED, ids=lambda traits: traits.name)
def test_the_catalog_says_what_is_counted(traits: Traits) -> None:
    """Within 2 %, for each published model. Its VAE is that of the 5B."""
    config = SHAPES["5B"].transformer | variants.ARCHITECTURES[traits.name] | SIZES[traits.name]
    transformer = _transformer(replace(SHAPES["5B"], transformer=config)).to(torch.bfloat16)
    transformer.set_attn_processor(attention.DispatchedAttention("native"))
    latents = torch.empty(
        1, 16, (traits.frames - 1) // 4 + 1, traits.height // 8, traits.width // 8, **WITHOUT_DATA
    )
    model = _vae(SHAPES["5B"]).to(torch.bfloat16)
    lean(model)

    counted = {"transformer_gb": weights_gb(transformer)}
    quantization.quantize(transformer, "int8")
    counted["transformer_8bit_gb"] = weights_gb(transformer)
    counted["denoise_gb"] = step_gb(transformer, traits, latents)
    counted["decode_gb"] = peak_gb(lambda: pieces_of(model, latents[:, :, :5]))
    counted["decode_tiled_gb"] = tiles_gb(model, latents)
    tokens = (
        latents.shape[2] * latents.shape[3] * latents.shape[4] // 4 // (config.get("patch_size_t") or 1) + 226
    )
    counted["faster_cache_gb"] = faster_cache_gb(
        config["num_layers"], tokens, 64 * config["num_attention_heads"]
    )

    assert counted == pytest.approx({name: getattr(traits, name) for name in counted}, rel=0.02)


def test_all_weights_of_the_5b_are_21_gigabytes() -> None:
    text = weights_gb(_text_encoder(SHAPES["5B"]).to(torch.bfloat16))

    assert text == pytest.approx(catalog.TEXT_ENCODER_GB, rel=0.02)
    assert weights_gb(_vae(SHAPES["5B"]).to(torch.bfloat16)) == pytest.approx(catalog.VAE_GB, rel=0.02)
    assert catalog.DEFAULT.download_gb == pytest.approx(21.1)
