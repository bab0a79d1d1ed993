"""The GPU node's levers side by side with diffusers as it comes, at the real shapes of CogVideoX-5B.

    python -m benchmarks.gpu_node [--seconds 540] [--out .data/bench/gpu_node]   # again, until nothing is left
    python -m benchmarks.gpu_node --report docs/gpu-performance.md

Each way of making a clip is measured for each preset in a process of its own, and its figures are kept: a run that
ends, or is cut off, goes on where it was. Weights are random (`benchmarks/gpu_shapes.py`): time does not depend on
them, and the distance to the exact latents shows that a lever does what it says, not how a picture looks.
`--model tiny --compile-backend eager` runs all of it on a CPU in a minute, to try the script itself.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from benchmarks.gpu_report import write_report
from benchmarks.gpu_shapes import SHAPES, build, floating_point_operations
from gpu_node import messages
from gpu_node.encoding import ClipEncoder
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.engine.loading import check_hardware, set_up
from gpu_node.engine.memory import memory_of
from gpu_node.engine.pipeline import GenerationInput, VideoPipeline
from gpu_node.pipes import Inbox, Outbox
from gpu_node.placement import Placement
from gpu_node.settings import EngineOptions, NodeSettings
from gpu_node.worker import Worker

PROMPT = "a red fox in the snow looks up and walks towards the camera"
BACKLOG = {"quick": 4, "standard": 2}  # clips in a row, for the idle time between them
SEED = 1
CASES_LEFT = 3  # exit status

# What the node is told for each way; `stock` does not go through the node at all.
EXACT: dict[str, Any] = {"profile": "exact"}
FAST: dict[str, Any] = {"profile": "fast"}
WAYS: dict[str, dict[str, Any]] = {
    "stock": {},
    "attention": EXACT | {"compile": "off"},
    "exact": EXACT,
    "fp8": FAST | {"step_cache": "none"},
    "faster_cache": FAST | {"quantization": "none", "step_cache": "faster_cache"},
    "pab": FAST | {"quantization": "none", "step_cache": "pab"},
    "first_block": FAST | {"quantization": "none", "step_cache": "first_block"},
    "cache_dit": FAST | {"quantization": "none", "step_cache": "cache_dit"},
    "fp8+faster_cache": FAST | {"step_cache": "faster_cache"},
    "fp8+pab": FAST | {"step_cache": "pab"},
    "fp8+first_block": FAST | {"step_cache": "first_block"},
    "fp8+cache_dit": FAST | {"step_cache": "cache_dit"},
    "memory": {"profile": "memory"},
}
PRESETS = {"5B": {"quick": (17, 20), "standard": (49, 50)}, "tiny": {"quick": (9, 6), "standard": (17, 8)}}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of making one preset's clip."""

    model: str
    preset: str
    way: str
    backend: str

    @property
    def name(self) -> str:
        return f"{self.preset}.{self.way}"

    @property
    def frames(self) -> int:
        return PRESETS[self.model][self.preset][0]

    @property
    def steps(self) -> int:
        return PRESETS[self.model][self.preset][1]

    def job(self) -> GenerationInput:
        shapes = SHAPES[self.model]
        return GenerationInput(
            width=shapes.width,
            height=shapes.height,
            frames=self.frames,
            steps=self.steps,
            guidance_scale=6.0,
            seed=SEED,
        )


# --- One case, in a process of its own --------------------------------------------------------------------------------
def measure(case: Case, out: Path) -> dict[str, Any]:
    """All figures of one case; only a reason where this hardware cannot do it."""
    diffusers_logging.set_verbosity_error()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    figures: dict[str, Any] = {
        "device": _device_name(device),
        "dtype": str(dtype),
        "torch": torch.__version__,
    }
    figures["operations_per_second"] = _operations_per_second(device, dtype)
    step, decoding = floating_point_operations(SHAPES[case.model], case.frames)
    figures["operations"] = step * case.steps + decoding
    try:
        figures |= (
            _stock(case, device, dtype, out) if case.way == "stock" else _node(case, device, dtype, out)
        )
    except ModelUnavailable as error:
        figures["not_possible"] = str(error)
    figures["peak_memory_mb"] = memory_of(device).peak_mb
    return figures


def _stock(case: Case, device: torch.device, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """diffusers' own example: the pipeline, moved to the device and called."""
    pipe, job = build(SHAPES[case.model], device=device, dtype=dtype), case.job()
    moments: list[float] = []

    def on_step(_: Any, __: int, ___: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        _wait(device)
        moments.append(time.perf_counter())
        return kwargs

    def run(steps: int) -> torch.Tensor:
        moments[:] = [time.perf_counter()]
        latents: torch.Tensor = pipe(
            prompt=PROMPT,
            width=job.width,
            height=job.height,
            num_frames=job.frames,
            num_inference_steps=steps,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=on_step,
            output_type="latent",
        ).frames
        return latents

    run(2)  # warm
    started = time.perf_counter()
    latents = run(job.steps)
    step = statistics.median(after - before for before, after in itertools.pairwise(moments[1:]))
    with torch.no_grad():
        decode, video = _timed(lambda: pipe.decode_latents(latents), device)
        text, _ = _timed(lambda: pipe.encode_prompt(PROMPT, "", True, device=device), device)
    frames = (
        ((video[0].float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    )
    encode = _encode(frames)
    torch.save(latents.cpu(), out / f"{case.preset}.latents.pt")
    clip = time.perf_counter() - started - text  # the text was encoded twice
    return {"step": step, "text": text, "decode": decode, "encode": encode, "clip": clip, "distance": 0.0}


def _node(case: Case, device: torch.device, dtype: torch.dtype, out: Path) -> dict[str, Any]:
    """The node's own engine and worker, set up in this way."""
    started = time.perf_counter()
    options = _options(case, device)
    check_hardware(options, device)
    place = Placement(text_on_gpu=case.way != "memory", tiled=case.way == "memory", peak_gb=0)
    pipe = build(SHAPES[case.model], device=device, dtype=dtype)
    pipeline = VideoPipeline(set_up(pipe, options, place, device, dtype), lower_case=False)
    if (
        device.type == "cuda"
    ):  # a loader quantises before it moves the weights: what counts is the peak afterwards
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    pipeline.warm_up(options)
    warm_up = time.perf_counter() - started
    text, prompts = _timed(lambda: pipeline.encode(PROMPT, ""), device)
    cached, _ = _timed(lambda: pipeline.encode(PROMPT, ""), device)
    latents = pipeline.denoise(case.job(), prompts, on_step=lambda _: None)
    decode, pieces = _timed(lambda: list(pipeline.decode(latents)), device)
    encode = _encode(*pieces)
    done = _backlog(case, pipeline)
    idle = [event.idle_seconds for event in done if event.idle_seconds is not None]
    reference = torch.load(out / f"{case.preset}.latents.pt").float()
    return {
        "step": statistics.median(event.seconds_per_step for event in done),
        "text": text,
        "text_cached": cached,
        "decode": decode,
        "encode": encode,
        "clip": statistics.median(
            event.seconds_per_step * case.steps + event.seconds_besides + (event.idle_seconds or 0)
            for event in done
        ),
        "idle": max(idle) if idle else None,
        "warm_up": warm_up,
        "distance": float((latents.cpu().float() - reference).norm() / reference.norm()),
        "setup": pipeline.setup,
    }


def _options(case: Case, device: torch.device) -> EngineOptions:
    given = NodeSettings.model_validate({"model": "tiny", "device": str(device)} | WAYS[case.way])
    changes: dict[str, Any] = {"compile_backend": case.backend, "warm_frames": (case.frames,)}
    if given.compile == "auto":
        changes["compile"] = "on"
    return given.engine.model_copy(update=changes)


def _backlog(case: Case, pipeline: VideoPipeline) -> list[messages.Done]:
    """Some clips one after the other through the worker, all waiting from the beginning."""
    commands, events = os.pipe(), os.pipe()
    source = os.fdopen(commands[0], "rb")
    worker = Worker(pipeline=pipeline, inbox=Inbox(source), outbox=Outbox(os.fdopen(events[1], "wb")))
    job, count = case.job(), BACKLOG[case.preset]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            run = messages.Run(
                job_id=str(number),
                path=f"{folder}/{number}.mp4",
                prompt=PROMPT,
                negative_prompt="",
                width=job.width,
                height=job.height,
                num_frames=job.frames,
                generated_frames=job.frames,
                fps=8,
                steps=job.steps,
                guidance_scale=job.guidance_scale,
                seed=SEED,
            )
            os.write(commands[1], messages.to_line(run))
        reader = os.fdopen(events[0], "rb")
        for _ in range(count):
            worker.run_next()
        worker.finish_files()
        done: list[messages.Done] = []
        while len(done) < count:
            event = messages.EVENTS.validate_json(reader.readline())
            assert not isinstance(event, messages.Failed), event
            if isinstance(event, messages.Done):
                done.append(event)
    return done


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


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


# --- All cases, in slices ---------------------------------------------------------------------------------------------
def run_slice(cases: list[Case], out: Path, seconds: float) -> int:
    """Measure what is not measured yet until the time is used up; how many cases are left."""
    deadline = time.monotonic() + seconds
    left = [case for case in cases if not (out / f"{case.name}.json").exists()]
    while left and time.monotonic() < deadline:
        case = left[0]
        print(f"{case.name} …", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_node", "--one", case.name, "--out", str(out)]
        command += ["--model", case.model, "--compile-backend", case.backend]
        try:
            subprocess.run(command, check=True, timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"{case.name} did not fit into what was left of the slice", flush=True)
            break
        left.pop(0)
    return len(left)


def run_one(case: Case, out: Path) -> None:
    figures = measure(case, out)
    part = out / f"{case.name}.json.part"
    part.write_text(json.dumps({"model": case.model, "steps": case.steps, "frames": case.frames} | figures))
    part.replace(out / f"{case.name}.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="5B", choices=SHAPES)
    parser.add_argument("--ways", default=",".join(WAYS), help="by commas; the first must be stock")
    parser.add_argument("--presets", default="quick,standard")
    parser.add_argument("--seconds", type=float, default=540.0, help="of this slice")
    parser.add_argument("--out", type=Path, default=Path(".data/bench/gpu_node"))
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument(
        "--report", type=Path, help="write this page from what was measured, and measure nothing"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.report is not None:
        write_report(arguments.out, arguments.report, ways=list(WAYS))
        return 0
    if arguments.one is not None:
        preset, _, way = arguments.one.partition(".")
        case = Case(model=arguments.model, preset=preset, way=way, backend=arguments.compile_backend)
        run_one(case, arguments.out)
        return 0
    if arguments.model == "5B" and not torch.cuda.is_available():
        sys.exit("The shapes of the 5B need a CUDA GPU; `--model tiny` runs on a CPU.")
    cases = [
        Case(model=arguments.model, preset=preset, way=way, backend=arguments.compile_backend)
        for preset in arguments.presets.split(",")
        for way in arguments.ways.split(",")
    ]
    left = run_slice(cases, arguments.out, arguments.seconds)
    print(f"{left} of {len(cases)} cases are left: run it again." if left else "All is measured.")
    return CASES_LEFT if left else 0


if __name__ == "__main__":
    sys.exit(main())
