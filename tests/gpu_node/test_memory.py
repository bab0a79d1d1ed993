"""What a model takes, counted on tensors without data at the published sizes; and decoding with less, bit by bit."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_shapes import SHAPES, _filled, _vae
from gpu_node.catalog import GB
from gpu_node.engine import vae


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


def random_latents(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 16, frames, 8, 12, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_a_decoding_with_less_memory_is_that_of_diffusers_bit_by_bit(dtype: torch.dtype, frames: int) -> None:
    """As a whole, in pieces and in tiles."""
    latents, ours, theirs = random_latents(frames, dtype), mini(dtype), mini(dtype)
    vae.save_memory(ours)
    assert any(isinstance(layer, vae.SpatialNorm) for layer in ours.modules())

    with torch.no_grad():
        whole = theirs.decode(latents).sample
        assert torch.equal(ours.decode(latents).sample, whole)
        assert torch.equal(pieces_of(ours, latents), whole)
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
    vae.save_memory(model)
    assert peak_gb(lambda: pieces_of(model, latents)) < 10.2


def test_for_a_gpu_the_weights_lie_as_its_kernels_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    ours, latents = mini(), random_latents(5)
    vae.set_up(ours, torch.device("cuda"))

    weights = [layer.weight for layer in ours.modules() if isinstance(layer, torch.nn.Conv3d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)
    assert torch.backends.cudnn.benchmark
    assert torch.allclose(pieces_of(ours, latents), pieces_of(mini(), latents), atol=1e-4)
