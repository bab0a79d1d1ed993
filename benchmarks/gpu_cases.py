"""One way of making one preset's clip, measured: what `benchmarks/gpu_node.py` runs in a process of its own."""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import CogVideoXPipeline
from diffusers.utils import logging as diffusers_logging

from benchmarks.gpu_shapes import SHAPES, TEXT_TOKENS, build, floating_point_operations
from gpu_node import ipc
from gpu_node.catalog import Placement, StepCache
from gpu_node.engine import pipeline as pipeline_module
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.engine.loading import set_up
from gpu_node.engine.pipeline import Prompts, VideoPipeline, memory_of
from gpu_node.engine.quantization import check_hardware
from gpu_node.schemas import Clip
from gpu_node.settings import EngineOptions, NodeSettings
from gpu_node.video import ClipEncoder
from gpu_node.worker import Worker

PROMPT = "a red fox in the snow looks up and walks towards the camera"
SEED = 1
RANDOM = "random"
SHORT_STEPS = (
    4  # of the clips that go before the one that is measured: the idle time between clips is the same
)

CACHES = tuple(name for name in get_args(StepCache) if name != "none")
# The share of steps that is computed, as published for these strengths. Random weights would say something else.
COMPUTED = {"skip_light": 1 / 1.57, "skip": 1 / 2.07, "skip_strong": 1 / 2.68}

# What the node is told for each way; `stock` does not go through the node at all.
EXACT: dict[str, Any] = {"profile": "exact"}
FAST: dict[str, Any] = {"profile": "fast"}
WAYS: dict[str, dict[str, Any]] = {
    "stock": {},
    "attention": EXACT | {"compile": "off"},
    "exact": EXACT,
    "fp8": FAST | {"step_cache": "none"},
    **{cache: FAST | {"quantization": "none", "step_cache": cache} for cache in CACHES},
    "fast": FAST,
    "memory": {"profile": "memory"},
}
PRESETS = {"5B": {"quick": (17, 20), "standard": (49, 50)}, "tiny": {"quick": (9, 6), "standard": (17, 8)}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of making one preset's clip.

    backend: what torch.compile uses. weights: a folder or a hub id, or RANDOM.
    """

    model: str
    preset: str
    way: str
    backend: str
    weights: str = RANDOM

    @property
    def name(self) -> str:
        return f"{self.preset}.{self.way}"

    @property
    def frames(self) -> int:
        return PRESETS[self.model][self.preset][0]

    @property
    def steps(self) -> int:
        return PRESETS[self.model][self.preset][1]

    def clip(self, *, steps: int | None = None) -> Clip:
        shapes = SHAPES[self.model]
        return Clip(
            prompt=PROMPT,
            width=shapes.width,
            height=shapes.height,
            num_frames=self.frames,
            generated_frames=self.frames,
            fps=8,
            steps=steps or self.steps,
            guidance_scale=6.0,
            seed=SEED,
        )


def measure(case: Case, out: Path) -> dict[str, Any]:
    """All figures of one case, times in seconds; only `not_possible`, a reason, where this hardware cannot do it."""
    diffusers_logging.set_verbosity_error()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": str(dtype),
        "torch": torch.__version__,
    }
    figures["operations_per_second"] = _operations_per_second(device, dtype)
    step, decoding = floating_point_operations(SHAPES[case.model], case.frames)
    figures["operations"] = step * case.steps + decoding
    way = _stock if case.way == "stock" else _node
    try:
        figures |= way(case, device, dtype, out)
    except ModelUnavailable as error:
        figures["not_possible"] = str(error)
    figures["peak_memory_mb"] = memory_of(device).peak_mb
    return figures


def _stock(case: Case, device: torch.device, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """diffusers' own example: the pipeline, moved to the device and called. Its latents are kept to compare with."""
    pipe, clip = _pipeline(case, device, dtype), case.clip()
    moments: list[float] = []

    def on_step(_: Any, __: int, ___: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        _wait(device)
        moments.append(time.perf_counter())
        return kwargs

    def run(steps: int) -> torch.Tensor:
        moments.clear()
        latents: torch.Tensor = pipe(
            prompt=PROMPT,
            width=clip.width,
            height=clip.height,
            num_frames=clip.num_frames,
            num_inference_steps=steps,
            guidance_scale=clip.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=on_step,
            output_type="latent",
        ).frames
        return latents

    run(2)  # warm
    denoise, latents = _timed(lambda: run(clip.steps), device)
    with torch.no_grad():
        decode, video = _timed(lambda: pipe.decode_latents(latents), device)
        text, _ = _timed(lambda: pipe.encode_prompt(PROMPT, "", True, device=device), device)
    frames = ((video[0].float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)
    encode = _encode(frames.cpu().numpy())
    ours = _one_call(pipe, case)
    pipe.transformer.float()
    reference = _one_call(pipe, case)
    torch.save(reference, _one_call_of_stock(case, out))
    return {
        "step": statistics.median(after - before for before, after in itertools.pairwise(moments)),
        "text": text,
        "decode": decode,
        "encode": encode,
        "clip": denoise + decode + encode,
        "distance": _distance(ours, reference),
    }


def _node(case: Case, device: torch.device, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """The node's own engine and worker, set up in this way; `clip` and `idle` are those of clips in a row."""
    started = time.perf_counter()
    options = _options(case, device)
    check_hardware(options.levers.quantization, device)
    place = Placement(text_on_gpu=case.way != "memory", tiled=case.way == "memory", peak_gb=0)
    pipe = _pipeline(case, device, dtype)
    if case.weights == RANDOM:
        pipeline_module.mask_of = _fixed_mask  # in this process, which ends with this case
    pipeline = KeepingPipeline(
        set_up(pipe, options, place, device, dtype, compile_backend=case.backend), lower_case=False
    )
    if (
        device.type == "cuda"
    ):  # a loader quantises before it moves the weights: what counts is the peak afterwards
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    pipeline.warm_up(options)
    warm_up = time.perf_counter() - started
    text, _ = _timed(lambda: pipeline.encode(PROMPT, ""), device)
    cached, _ = _timed(lambda: pipeline.encode(PROMPT, ""), device)
    done = _in_a_row(case, pipeline)
    clip, idle = done[-1], [event.idle_seconds for event in done if event.idle_seconds is not None]
    decode, pieces = _timed(lambda: list(pipeline.decode(pipeline.latents)), device)
    kept = _one_call_of_stock(case, out)
    reference = torch.load(kept) if kept.exists() else None
    return {
        "step": clip.seconds_per_step,
        "text": text,
        "text_cached": cached,
        "decode": decode,
        "encode": _encode(*pieces),
        "clip": clip.seconds_per_step * case.steps + clip.seconds_besides + (clip.idle_seconds or 0),
        "idle": max(idle, default=None),
        "warm_up": warm_up,
        "distance": _distance(_one_call(pipe, case), reference),
        "setup": pipeline.setup,
    }


def _pipeline(case: Case, device: torch.device, dtype: torch.dtype) -> CogVideoXPipeline:
    """All on the device."""
    if case.weights == RANDOM:
        return build(SHAPES[case.model], device=device, dtype=dtype)
    pipe: CogVideoXPipeline = CogVideoXPipeline.from_pretrained(case.weights, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


class KeepingPipeline(VideoPipeline):
    """Keeps the latents of its last clip, `latents`, to be compared and decoded once more."""

    latents: torch.Tensor

    def denoise(
        self, clip: Clip, prompts: Prompts, *, picture: Path | None = None, on_step: Callable[[int], None]
    ) -> torch.Tensor:
        """Denoise as the base class does."""
        self.latents = super().denoise(clip, prompts, picture=picture, on_step=on_step)
        return self.latents


def _options(case: Case, device: torch.device) -> EngineOptions:
    given = NodeSettings.model_validate({"model": "tiny", "device": str(device)} | WAYS[case.way])
    changes: dict[str, Any] = {"warm_frames": (case.frames,)}
    if given.compile == "auto":
        changes["compile"] = "on"
    return given.engine.model_copy(update=changes)


def _in_a_row(case: Case, pipeline: VideoPipeline) -> list[ipc.Done]:
    """Two short clips and a whole one through the worker, all waiting from the beginning; what it says of each."""
    commands, events = os.pipe(), os.pipe()
    source, answers = os.fdopen(commands[0], "rb"), os.fdopen(events[0], "rb")
    worker = Worker(pipeline=pipeline, inbox=ipc.Inbox(source), outbox=ipc.Outbox(os.fdopen(events[1], "wb")))
    rounds = [min(SHORT_STEPS, case.steps)] * 2 + [case.steps]
    with tempfile.TemporaryDirectory() as folder:
        for number, steps in enumerate(rounds):
            path = f"{folder}/{number}.mp4"
            command = ipc.Run(job_id=path, path=path, clip=case.clip(steps=steps))
            os.write(commands[1], ipc.to_line(command))
        for _ in rounds:
            worker.run_next()
        worker.finish_files()
        done: list[ipc.Done] = []
        while len(done) < len(rounds):
            event = ipc.EVENTS.validate_json(answers.readline())
            assert not isinstance(event, ipc.Failed), event
            if isinstance(event, ipc.Done):
                done.append(event)
    return done


def _fixed_mask(_: Any, times: torch.Tensor, __: Any, *, strength: str) -> list[bool]:
    """As many steps as COMPUTED says, evenly; the first and the last always."""
    last = len(times) - 1
    gaps = max(1, round(COMPUTED[strength] * len(times)) - 1)
    computed = {round(gap * last / gaps) for gap in range(gaps + 1)}
    return [step in computed for step in range(len(times))]


def _one_call_of_stock(case: Case, out: Path) -> Path:
    return out / f"{case.preset}.call.pt"


@torch.no_grad()
def _one_call(pipe: CogVideoXPipeline, case: Case) -> torch.Tensor:
    """The transformer's result for one step of the clip, float32, on the CPU; the same input for every way."""
    transformer, shapes, generator = pipe.transformer, SHAPES[case.model], torch.Generator().manual_seed(SEED)
    weights = next(transformer.parameters())
    frames, height, width = (case.frames - 1) // 4 + 1, shapes.height // 8, shapes.width // 8
    latents = torch.randn(2, frames, 16, height, width, generator=generator)
    text = torch.randn(2, TEXT_TOKENS, transformer.config.text_embed_dim, generator=generator)
    rotary = pipe._prepare_rotary_positional_embeddings(shapes.height, shapes.width, frames, weights.device)
    out = transformer(
        *(states.to(weights.device, weights.dtype) for states in (latents, text)),
        timestep=torch.tensor([500, 500], device=weights.device),
        image_rotary_emb=rotary,
    )
    result: torch.Tensor = out.sample.float().cpu()
    return result


def _distance(ours: torch.Tensor, reference: torch.Tensor | None) -> float | None:
    """Relative; None where there is nothing to compare with."""
    return None if reference is None else float((ours - reference).norm() / reference.norm())


def _operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of a large matrix product: what the arithmetic floor is reckoned with."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [_timed(lambda: left @ right, device)[0] for _ in range(20)]
    return 2 * size**3 / statistics.median(times[5:])


def _encode(*pieces: Any) -> float:
    """Seconds to turn frames into a file."""
    ends: list[Exception | None] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        encoder = ClipEncoder(path=Path(folder) / "clip.mp4", fps=8, on_end=ends.append)
        for piece in pieces:
            encoder.add(piece)
        encoder.finish()
        encoder.join()
        took = time.perf_counter() - started
    assert ends == [None], ends
    return took


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    _wait(device)
    started = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - started, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
