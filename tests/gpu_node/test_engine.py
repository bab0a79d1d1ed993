"""The engine against diffusers as it comes: what is said to be exact is exact, what is lossy says so."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import psutil
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from PIL import Image
from transformers import T5EncoderModel

from gpu_node import catalog, worker
from gpu_node.engine import attention, loading, quantization, speed, step_skip, vae
from gpu_node.engine.errors import (
    Canceled,
    ModelUnavailable,
    UnusableResult,
    is_out_of_memory,
    poisons_process,
)
from gpu_node.engine.loading import load
from gpu_node.engine.pipeline import VideoPipeline
from gpu_node.engine.speed import DPMScheduler
from gpu_node.engine.vae import FlatConv
from gpu_node.schemas import Clip
from gpu_node.settings import EngineOptions, NodeSettings
from tests.gpu_node import variants
from tests.gpu_node.test_memory import GB, faster_cache_gb

PROMPT = "a red ball"
SMALL: dict[str, Any] = {"prompt": PROMPT, "width": 64, "height": 32, "fps": 8, "steps": 4}
SMALL |= {"guidance_scale": 6.0, "seed": 3}


def no_compiler(*_: Any) -> Any:
    """A backend of torch.compile on a machine without a C compiler."""
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def clip(*, frames: int = 9, **fields: Any) -> Clip:
    return Clip(num_frames=frames, generated_frames=frames, **SMALL | fields)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.compiler.set_stance("default")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each architecture, saved when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / f"mini-{name}").exists():
            variants.save(name, root / f"mini-{name}")
        return root / f"mini-{name}"

    return folder


def options(folder: Path, **settings: Any) -> EngineOptions:
    values = {"model": str(folder), "device": "cpu", "save_dir": folder.parent} | settings
    return NodeSettings.model_validate(values).engine


def loaded(folder: Path, **settings: Any) -> VideoPipeline:
    return VideoPipeline.load(options(folder, **settings))


@pytest.fixture(scope="module")
def pipeline(folders: Callable[[str], Path]) -> VideoPipeline:
    return loaded(folders("CogVideoX-5B"))


def latents_of(pipeline: VideoPipeline, *, picture: Path | None = None, **fields: Any) -> torch.Tensor:
    prompts = pipeline.encode(PROMPT, "")
    return pipeline.denoise(clip(**fields), prompts, picture=picture, on_step=lambda _: None)


def stock_latents(pipe: Any, *, picture: Path | None = None, **fields: Any) -> torch.Tensor:
    """diffusers as it comes."""
    wanted = clip(**fields)
    extra = {"image": Image.open(picture)} if picture else {}
    out: torch.Tensor = pipe(
        prompt=PROMPT,
        width=wanted.width,
        height=wanted.height,
        num_frames=wanted.generated_frames,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed),
        output_type="latent",
        **extra,
    ).frames
    return out


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


class TestExactness:
    def test_the_scheduler_is_diffusers_own_bit_by_bit(self) -> None:
        """Over whole runs, with the noise of a generator."""
        config = variants.build("CogVideoX-5B").scheduler.config
        results = []
        for kind in (CogVideoXDPMScheduler, DPMScheduler):
            scheduler, generator = kind.from_config(config), torch.Generator().manual_seed(1)
            scheduler.set_timesteps(7, device="cpu")
            sample, original = torch.randn(1, 3, 16, 4, 8, generator=generator), None
            times = scheduler.timesteps
            for index, moment in enumerate(times):
                output = torch.sin(sample * 3)
                back = times[index - 1] if index else None
                sample, original = scheduler.step(
                    output, original, moment, back, sample, generator=generator, return_dict=False
                )
            results.append(sample)

        assert torch.equal(*results)

    def test_exact_latents_are_those_of_stock_diffusers(self, pipeline: VideoPipeline) -> None:
        ours, theirs = latents_of(pipeline), stock_latents(variants.build("CogVideoX-5B"))

        assert ours.shape == theirs.shape
        assert distance(ours, theirs) < 1e-4

    def test_frames_come_in_pieces_and_are_those_of_a_whole_decoding(
        self, pipeline: VideoPipeline, folders: Callable[[str], Path]
    ) -> None:
        latents = torch.randn(1, 7, 16, 4, 8, generator=torch.Generator().manual_seed(1))

        pieces = list(pipeline.decode(latents))

        vae = pipeline._pipe.vae
        whole = vae.decode(1 / vae.config.scaling_factor * latents.permute(0, 2, 1, 3, 4)).sample[0]
        expected = (whole.detach() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 3, 0)
        assert [len(piece) for piece in pieces] == [9, 8, 8]
        assert numpy.array_equal(numpy.concatenate(pieces), expected.numpy())

    def test_tiles_give_the_same_size_and_nearly_the_same_picture(self, pipeline: VideoPipeline) -> None:
        latents = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(1))

        whole = numpy.concatenate(list(pipeline.decode(latents))).astype(int)
        tiled = numpy.concatenate(list(pipeline.decode(latents, tiled=True))).astype(int)

        assert tiled.shape == whole.shape
        assert 0 < numpy.abs(tiled - whole).mean() < 40, "each tile is normalised by itself"

    def test_a_three_dimensional_convolution_is_a_sum_of_two_dimensional_ones(self) -> None:
        conv = torch.nn.Conv3d(8, 12, 3, padding=(0, 1, 1))
        video = torch.randn(2, 8, 6, 10, 14)

        assert torch.allclose(FlatConv(conv)(video), conv(video), atol=1e-5)

    def test_the_convolutions_are_replaced_where_that_is_faster(self, pipeline: VideoPipeline) -> None:
        kinds = {type(module) for module in pipeline._pipe.vae.modules()}

        assert FlatConv in kinds

    def test_a_prompt_is_encoded_once(self, pipeline: VideoPipeline) -> None:
        first, again = pipeline.encode("a unicorn", ""), pipeline.encode("a unicorn", "")

        assert again[0] is first[0]
        assert again[1] is first[1]

    def test_an_empty_negative_prompt_outlives_any_number_of_others(self, pipeline: VideoPipeline) -> None:
        first = pipeline.encode("x", "")
        for number in range(loading.KEPT_PROMPTS):
            pipeline.encode(f"prompt {number}", "")

        assert pipeline.encode("x", "")[1] is first[1]
        assert pipeline.encode("x", "")[0] is not first[0]


CPU = torch.device("cpu")


class TestAttention:
    def test_every_backend_that_is_here_gives_the_same(self, pipeline: VideoPipeline) -> None:
        native = latents_of(pipeline)
        transformer = pipeline._pipe.transformer
        try:
            transformer.set_attn_processor(attention.DispatchedAttention("_native_math"))
            assert distance(latents_of(pipeline), native) < 1e-4
        finally:
            transformer.set_attn_processor(attention.DispatchedAttention("native"))

    def test_the_fastest_is_measured_and_what_does_not_run_is_left_out(self) -> None:
        chosen = attention.fastest_backend(
            ("native", "_native_math", "flash", "flash_3"),
            shape=(2, 128, 2, 16),
            dtype=torch.float32,
            device=CPU,
        )

        assert chosen in ("native", "_native_math")

    def test_one_that_computes_something_else_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A kernel that is fast because it is wrong."""
        true = attention.kernel

        def kernel(name: str) -> attention.Kernel:
            return (lambda q, k, v: true(name)(q, k, v) * 0.9) if name == "_native_math" else true(name)

        monkeypatch.setattr(attention, "kernel", kernel)
        chosen = attention.fastest_backend(
            ("_native_math",), shape=(2, 128, 2, 16), dtype=torch.float32, device=CPU
        )

        assert chosen == "native"

    @pytest.mark.parametrize("name", ["flash", "flash_3", "_native_cudnn"])
    def test_what_the_operator_names_and_does_not_run_here_is_refused_at_once(
        self, name: str, folders: Callable[[str], Path]
    ) -> None:
        with pytest.raises(ModelUnavailable, match=f"GPU_NODE_ATTENTION: {name} cannot be used here: "):
            loaded(folders("CogVideoX-5B"), attention=name)

    def test_flash_attention_3_is_called_as_its_package_wants_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stand-in with the package's signature, computed by PyTorch; the kernels themselves need a Hopper card."""

        def flash_attn_func(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: Any = None, causal: bool = False,
            qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
        ) -> torch.Tensor:  # fmt: skip
            kinds.append(q.dtype)
            scales = [
                1.0 if scale is None else scale[:, None, :, None]
                for scale in (q_descale, k_descale, v_descale)
            ]
            states = [
                (each.float() * scale).transpose(1, 2) for each, scale in zip((q, k, v), scales, strict=True)
            ]
            out = torch.nn.functional.scaled_dot_product_attention(*states).transpose(1, 2)
            return out.to(torch.bfloat16)

        kinds: list[torch.dtype] = []
        monkeypatch.setitem(
            sys.modules, "fa3_fwd_interface", SimpleNamespace(flash_attn_func=flash_attn_func)
        )
        attention.check_backend("flash_3", dtype=torch.bfloat16, device=CPU)
        attention.check_backend("flash_3_fp8", dtype=torch.bfloat16, device=CPU)

        assert kinds == [torch.bfloat16, torch.float8_e4m3fn]
        with pytest.raises(ModelUnavailable, match="differs"):
            monkeypatch.setattr(attention, "LOSSY_ATTENTION", ())
            attention.check_backend("flash_3_fp8", dtype=torch.bfloat16, device=CPU)


class TestCompiling:
    @pytest.fixture(autouse=True)
    def anew(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch.compiler.set_stance("default")
        torch._dynamo.reset()

    @pytest.fixture
    def compiled(self, folders: Callable[[str], Path]) -> Iterator[tuple[VideoPipeline, list[int]]]:
        """With a backend that counts the graphs it is given, and runs them as they are."""
        pipeline, count = loaded(folders("CogVideoX-5B")), [0]

        def backend(graph: Any, _: Any) -> Any:
            count[0] += 1
            return graph.forward

        speed.compile_forward(pipeline._pipe.transformer, backend=backend)
        yield pipeline, count

    def test_warm_shapes_are_compiled_and_no_other_ever_is(
        self, compiled: tuple[VideoPipeline, list[int]], pipeline: VideoPipeline
    ) -> None:
        (ours, count), before = compiled, latents_of(pipeline)
        with speed.new_shapes_compile():
            latents_of(ours)
        warm = count[0]
        assert warm > 0

        assert distance(latents_of(ours), before) == 0
        latents_of(ours, frames=17)
        assert count[0] == warm, "a clip waits for no compiler"

    def test_without_a_compiler_the_node_runs_uncompiled_and_says_so(
        self, folders: Callable[[str], Path], pipeline: VideoPipeline
    ) -> None:
        """Unless the operator insists."""
        expected = latents_of(pipeline)
        wanted = options(folders("CogVideoX-5B"), compile="on", warm_frames="9")
        with pytest.raises(ModelUnavailable, match=r"cannot be compiled here: .*Failed to find C compiler"):
            VideoPipeline.load(wanted, compile_backend=no_compiler)

        ours = VideoPipeline(load(wanted, compile_backend=no_compiler), lower_case=False)
        ours.warm_up(wanted.model_copy(update={"compile": "auto"}))

        assert ours.setup["compiled"] is False
        assert torch.equal(latents_of(ours), expected)

    def test_the_operators_frames_are_warmed_at_start_up(self, folders: Callable[[str], Path]) -> None:
        warm = loaded(folders("CogVideoX-5B"), warm_frames="1,9")

        assert warm.setup["compiled"] is False
        assert torch.isfinite(latents_of(warm)).all()


class TestQuantization:
    @pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("fp8", 0.06)])
    def test_eight_bits_are_nearly_as_good(self, kind: str, bound: float) -> None:
        linear = torch.nn.Linear(64, 32).to(torch.bfloat16)
        inputs = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        layer = {"int8": quantization.Int8Linear, "fp8": quantization.Float8Linear}[kind](linear)

        # Activations are of 8 bits only where they are compiled.
        run = torch.compile(layer, backend="eager") if kind == "fp8" else layer
        with torch.no_grad():
            ours, exact = run(inputs), linear(inputs)

        assert ours.shape == exact.shape
        assert ours.dtype == torch.bfloat16
        assert 0 < float((ours - exact).norm() / exact.norm()) < bound

    def test_uncompiled_the_activations_stay_as_they_are(self) -> None:
        """Turning them into 8 bits kernel by kernel takes longer than the arithmetic saves."""
        linear = torch.nn.Linear(64, 32).to(torch.bfloat16)
        inputs = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        layer = quantization.Float8Linear(linear)
        weight = (layer.weight.float() * layer.scale).to(torch.bfloat16)

        assert torch.equal(layer(inputs), torch.nn.functional.linear(inputs, weight, linear.bias))

    def test_the_weights_take_half_the_memory(self, folders: Callable[[str], Path]) -> None:
        transformer = variants.build("CogVideoX-5B").to(torch.bfloat16).transformer
        quantization.quantize(transformer, "int8")
        kinds = [type(module).__name__ for module in transformer.transformer_blocks[0].modules()]

        assert kinds.count("Int8Linear") == 6
        assert kinds.count("Linear") == 2, "what modulates the norms stays as it is"

    def test_the_profile_memory_makes_a_clip_and_says_so(
        self, folders: Callable[[str], Path], pipeline: VideoPipeline
    ) -> None:
        saving = loaded(folders("CogVideoX-5B"), profile="memory")

        assert (saving.setup["profile"], saving.setup["quantization"]) == ("memory", "int8")
        assert saving.decodes_in_tiles
        assert 0 < distance(latents_of(saving), latents_of(pipeline)) < 0.5
        assert sum(len(frames) for frames in saving.decode(latents_of(saving))) == 9

    def test_fp8_is_refused_in_plain_words_where_the_hardware_has_none(
        self, folders: Callable[[str], Path]
    ) -> None:
        with pytest.raises(ModelUnavailable, match="fp8 needs a CUDA GPU; this node runs on the CPU"):
            loaded(folders("CogVideoX-5B"), profile="fast")


def kept_bytes(transformer: torch.nn.Module) -> int:
    """In all tensors that the hooks of a step cache hold on to, each storage once."""
    sizes: dict[int, int] = {}

    def look(value: Any, depth: int = 0) -> None:
        if torch.is_tensor(value):
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple, dict)):
            for each in value.values() if isinstance(value, dict) else value:
                look(each, depth + 1)
        elif depth < 6 and type(value).__module__.startswith("diffusers.hooks"):
            for each in vars(value).values():
                look(each, depth + 1)

    for module in transformer.modules():
        look(getattr(module, "_diffusers_hook", None))
    return sum(sizes.values())


def with_cache(folder: Path, name: str = "faster_cache") -> VideoPipeline:
    return loaded(folder, profile="fast", quantization="none", step_cache=name)


CACHES = ("skip", "faster_cache")


class TestStepCaches:
    @pytest.mark.parametrize("name", CACHES)
    def test_each_changes_the_clip_and_leaves_nothing_for_the_next(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also after a run that was cut off in the middle; on more blocks than two, so that there is one to skip."""
        monkeypatch.setattr(
            "gpu_node.engine.pipeline.mask_of", lambda *_, **__: [True, False] * 3 + [True] * 2
        )
        folder = variants.save("CogVideoX-5B", tmp_path / "mini", layers=4)
        cached = with_cache(folder, name)
        assert cached.setup["step_cache"] == name
        first = latents_of(cached, steps=8)

        def stop(step: int) -> None:
            if step == 5:
                raise Canceled

        with pytest.raises(Canceled):
            cached.denoise(clip(steps=8, seed=9), cached.encode("a blue star", ""), on_step=stop)

        assert torch.isfinite(first).all()
        assert torch.equal(latents_of(cached, steps=8), first)
        assert not torch.equal(latents_of(loaded(folder), steps=8), first)

    @pytest.mark.parametrize("name", CACHES)
    @pytest.mark.parametrize("guidance", [0.0, 1.0])
    def test_a_clip_without_guidance_is_made_too(
        self, name: str, guidance: float, folders: Callable[[str], Path]
    ) -> None:
        cached = with_cache(folders("CogVideoX-5B"), name)

        assert torch.isfinite(latents_of(cached, steps=6, guidance_scale=guidance)).all()

    @pytest.mark.parametrize("name", CACHES)
    def test_what_is_compiled_lies_beneath(self, name: str, folders: Callable[[str], Path]) -> None:
        torch._dynamo.reset()
        plain = with_cache(folders("CogVideoX-5B"), name)
        native = {"width": plain.traits.width, "height": plain.traits.height, "steps": 8}
        wanted = options(
            folders("CogVideoX-5B"),
            profile="fast",
            quantization="none",
            step_cache=name,
            compile="on",
            warm_frames="9",
        )
        compiled = VideoPipeline.load(wanted, compile_backend="eager")

        with torch.compiler.set_stance("fail_on_recompile"):
            ours = latents_of(compiled, **native)
        assert compiled.setup["compiled"] is True
        assert torch.equal(ours, latents_of(plain, **native))


class TestStepSkip:
    def test_with_all_steps_computed_it_is_exact_bit_by_bit(
        self, folders: Callable[[str], Path], pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpu_node.engine.pipeline.mask_of", lambda *_, **__: [True] * 4)

        assert torch.equal(latents_of(with_cache(folders("CogVideoX-5B"), "skip")), latents_of(pipeline))

    def test_a_step_that_is_left_out_runs_no_block(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpu_node.engine.pipeline.mask_of", lambda *_, **__: [True, False, False, True])
        skipping, calls = with_cache(folders("CogVideoX-5B"), "skip"), []
        skipping._skipping.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        latents_of(skipping)

        assert len(calls) == 2

    @pytest.mark.parametrize("name", ["CogVideoX-2B", "CogVideoX-5B", "CogVideoX1.5-5B-I2V"])
    @pytest.mark.parametrize("strength", step_skip.THRESHOLDS)
    def test_which_steps_are_computed_follows_teacaches_rule(self, name: str, strength: str) -> None:
        """Step by step, as TeaCache goes; with a polynomial by which a mini model leaves some steps out."""
        pipe = variants.build(name)
        transformer, scheduler = pipe.transformer, loading.fresh_scheduler(pipe)
        scheduler.set_timesteps(30)
        times = torch.tensor([float(time) for time in scheduler.timesteps])
        with torch.no_grad():
            whole = transformer.time_embedding(transformer.time_proj(times))
            if transformer.ofs_embedding is not None:
                whole = whole + transformer.ofs_embedding(transformer.ofs_proj(torch.tensor([2.0])))
        steepness = 0.05 / float((whole[1] - whole[0]).abs().mean() / whole[0].abs().mean())
        expected, drift = [], 0.0
        for step in range(30):
            if step in (0, 29):
                computed = True
            else:
                change = (whole[step] - whole[step - 1]).abs().mean() / whole[step - 1].abs().mean()
                drift += steepness * float(change)
                computed = drift >= step_skip.THRESHOLDS[strength]
            drift = 0.0 if computed else drift
            expected.append(computed)

        mask = step_skip.mask_of(transformer, times, (steepness, 0.0), strength=strength)

        assert mask == expected
        assert 2 < sum(mask) < 30


class TestFasterCache:
    def test_what_it_keeps_is_reckoned_with_and_gone_before_the_decoding(
        self, folders: Callable[[str], Path]
    ) -> None:
        """Of the 5B's long clips it keeps 18 GB: the decoding must have the room."""
        cached = with_cache(folders("CogVideoX-5B"))
        transformer = cached._pipe.transformer
        tokens, channels = 226 + 3 * 4 * 2, transformer.config.num_attention_heads * 16
        kept: list[int] = []
        cached.denoise(
            clip(steps=8), cached.encode(PROMPT, ""), on_step=lambda _: kept.append(kept_bytes(transformer))
        )

        reckoned = faster_cache_gb(2, tokens, channels) * GB
        assert max(kept) == pytest.approx(2 * reckoned, rel=0.1), "reckoned in 16 bits, measured in 32"
        assert kept_bytes(transformer) == 0


@pytest.mark.parametrize(
    ("words", "only_a_new_process_helps"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("CUDA driver error: unknown error", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
        ("shape '[1, 2]' is invalid for input of size 3", False),
    ],
)
def test_what_leaves_the_gpu_unusable_is_known_by_its_words(
    words: str, only_a_new_process_helps: bool
) -> None:
    assert poisons_process(RuntimeError(words)) is only_a_new_process_helps


def test_values_that_are_no_picture_fail_before_they_are_decoded(
    pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(pipeline._pipe),
        "__call__",
        lambda *_, **__: type("Out", (), {"frames": torch.full((1, 3, 16, 4, 8), numpy.nan)}),
    )
    with pytest.raises(UnusableResult, match="not finite"):
        latents_of(pipeline)


class TestModels:
    def test_a_folder_without_a_model_is_said_plainly_and_without_its_path(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()

        with pytest.raises(ModelUnavailable) as refused:
            loaded(tmp_path / "empty")

        assert str(refused.value) == "empty cannot be loaded: the folder has no complete model_index.json."

    @pytest.fixture(scope="class")
    def picture(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("pictures") / "start.png"
        pixels = numpy.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(path)
        return path

    @pytest.mark.parametrize("name", [name for name in variants.ARCHITECTURES if name != "CogVideoX-5B"])
    def test_each_architecture_makes_what_stock_diffusers_makes_of_it(
        self, name: str, folders: Callable[[str], Path], picture: Path
    ) -> None:
        ours = loaded(folders(name))
        fields: dict[str, Any] = {"width": 96, "height": 64}  # 5B-I2V has its places learned: one size only
        fields |= {"picture": picture} if "I2V" in name else {}
        stock = variants.build(name)
        if name == "CogVideoX-2B":
            stock.scheduler = CogVideoXDDIMScheduler.from_config(stock.scheduler.config)

        made, expected = latents_of(ours, **fields), stock_latents(stock, **fields)

        assert ours.traits.takes_image == ("I2V" in name)
        assert made.shape == (1, 3, 16, 8, 12)
        assert distance(made, expected[:, -3:]) < 1e-4
        assert sum(len(frames) for frames in ours.decode(made)) == 9

    def test_another_picture_is_another_clip(
        self, folders: Callable[[str], Path], picture: Path, tmp_path: Path
    ) -> None:
        ours = loaded(folders("CogVideoX-5B-I2V"))
        Image.new("RGB", (640, 200), "red").save(tmp_path / "red.jpg")

        first, second = (
            latents_of(ours, width=96, height=64, picture=path) for path in (picture, tmp_path / "red.jpg")
        )

        assert distance(first, second) > 0.1


class TestMemory:
    """A card that is too small for the decoding: without a GPU, one whose memory runs out is pretended."""

    @staticmethod
    def runs_out(monkeypatch: pytest.MonkeyPatch, *, in_tiles: bool = False) -> None:
        decode = vae.decode

        def faulty(model: Any, latents: torch.Tensor, *, tiled: bool) -> Iterator[Any]:
            if in_tiles or not tiled:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 …")
            assert sys.exc_info()[0] is None, (
                "an error that is being handled keeps alive what filled the memory"
            )
            yield from decode(model, latents, tiled=tiled)

        monkeypatch.setattr(vae, "decode", faulty)

    @pytest.mark.parametrize("warm_frames", ["9", None])
    def test_one_that_is_a_little_too_small_becomes_ready_and_decodes_in_tiles(
        self, warm_frames: str | None, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether it is the warming up that shows it or, where there is none, the measuring."""
        self.runs_out(monkeypatch)

        small = loaded(folders("CogVideoX-5B"), warm_frames=warm_frames)

        assert small.decodes_in_tiles
        assert len(small.paces) == 1
        assert sum(len(frames) for frames in small.decode(latents_of(small))) == 9

    def test_one_that_is_too_small_even_for_tiles_is_given_up_in_plain_words(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not started again and again."""
        self.runs_out(monkeypatch, in_tiles=True)

        with pytest.raises(ModelUnavailable) as refused:
            loaded(folders("CogVideoX-5B"), warm_frames="9")

        reason = "mini-CogVideoX-5B needs more memory than the GPU has, even decoding in tiles: CUDA out of memory."
        assert str(refused.value).startswith(reason)
        assert worker._load_failure("5B", refused.value).permanent

    def test_what_cannot_be_measured_keeps_no_node_from_its_start(
        self, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.runs_out(monkeypatch, in_tiles=True)

        assert loaded(folders("CogVideoX-5B")).paces == []

    def test_convolutions_without_room_to_work_in_count_too(self) -> None:
        error = RuntimeError("GET was unable to find an engine to execute this computation")

        assert is_out_of_memory(error)
        assert not poisons_process(error)

    @pytest.mark.parametrize(
        ("slow", "room", "expected"),
        [
            (torch.bfloat16, 10**10, torch.float32),
            (torch.bfloat16, 10**3, torch.bfloat16),
            (torch.float32, 10**10, torch.bfloat16),
        ],
    )
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_a_text_encoder_on_the_cpu_computes_in_what_is_faster_there(
        self,
        slow: torch.dtype,
        room: int,
        expected: torch.dtype,
        dtype: str,
        folders: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If there is the memory. Old CPUs take ten times as long in bfloat16."""
        linear = torch.nn.functional.linear

        def timed(inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            time.sleep(0.02 if inputs.dtype == slow and inputs.shape[0] == catalog.TEXT_TOKENS else 0)
            return linear(inputs, *rest)

        monkeypatch.setattr(torch.nn.functional, "linear", timed)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=room))
        wanted = options(folders("CogVideoX-2B")).model_copy(update={"dtype": dtype, "warm_frames": ()})
        used: list[torch.dtype] = []
        forward = T5EncoderModel.forward

        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            used.append(self.dtype)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(T5EncoderModel, "forward", noted)
        embedding = load(wanted).embed("a red ball")

        assert used == [expected]
        assert embedding.dtype == getattr(torch, dtype), "the transformer has its own"
