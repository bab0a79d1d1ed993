"""A loaded model, owned by one process and used by one job at a time: prompt, latents, frames."""

import logging
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image, ImageOps
from torch._dynamo.exc import TorchDynamoException

from gpu_node.engine import vae
from gpu_node.engine.download import Report
from gpu_node.engine.errors import ModelUnavailable, UnusableResult, is_out_of_memory, poisons_process
from gpu_node.engine.loading import COMPILE_BACKEND, Loaded, fresh_scheduler, load
from gpu_node.engine.speed import enable_faster_cache, new_shapes_compile
from gpu_node.engine.step_skip import mask_of
from gpu_node.ipc import Memory, Pace
from gpu_node.schemas import Clip
from gpu_node.settings import EMBEDDED, EngineOptions, shown_name

log = logging.getLogger(__name__)

Prompts = tuple[torch.Tensor, torch.Tensor]  # embeddings of the prompt and of the negative prompt
WARM_STEPS = 4  # enough for a step cache to have gone through both of its ways
# Of the clip by which the pace is measured where none is made to warm up: the shorter preset's.
MEASURED_FRAMES = 17
MEGABYTE = 2**20
RUSAGE_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux


class VideoPipeline:
    """A CogVideoX in place. Not safe for two jobs at once: the scheduler keeps state between steps."""

    def __init__(self, loaded: Loaded, *, lower_case: bool) -> None:
        self._pipe = loaded.pipe
        self._embed = loaded.embed
        self._skipping = loaded.skipping
        self._lower_case = lower_case
        self.traits = loaded.traits
        self.setup = loaded.setup
        self.device = loaded.device
        self.decodes_in_tiles = loaded.tiled  # every clip, for want of memory
        self.first_step_began = 0.0
        self.paces: list[Pace] = []
        loaded.pipe.transformer.register_forward_pre_hook(self._note_first_step)

    @classmethod
    def load(
        cls, options: EngineOptions, *, compile_backend: str = COMPILE_BACKEND, report: Report = log.info
    ) -> "VideoPipeline":
        """Load, warm up and measure; `report` is told how far it is. Raises what `load` raises."""
        try:
            loaded = load(options, compile_backend=compile_backend, report=report)
            pipeline = cls(loaded, lower_case=options.model in EMBEDDED)
            pipeline.warm_up(options)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            about = f"{shown_name(options.model)} needs more memory than the GPU has, even decoding in tiles"
            raise ModelUnavailable(f"{about}: {str(error).partition(chr(10))[0]}") from error
        pipeline.measure(options)
        return pipeline

    @property
    def device_name(self) -> str:
        """Name of the device, for people."""
        if self.device.type == "cuda":
            return f"cuda ({torch.cuda.get_device_name(self.device)})"
        return self.device.type

    def warm_up(self, options: EngineOptions) -> None:
        """Make the shapes that will be asked for once, so that no clip waits for a compiler.

        Where nothing can be compiled (no C compiler, most often) the node runs all the same, slower, and says so;
        unless the operator insists, which raises ModelUnavailable.
        """
        try:
            with new_shapes_compile():
                for frames in options.frames_to_warm:
                    self._make_blank(frames)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            if options.compile == "on":
                raise ModelUnavailable(
                    f"GPU_NODE_COMPILE: this model cannot be compiled here: {reason}"
                ) from error
            log.warning("running uncompiled, which is slower: %s", reason)
            torch.compiler.set_stance("force_eager")
            self.setup["compiled"] = False

    def measure(self, options: EngineOptions) -> None:
        """Measure the pace of the warm shapes, else of one, so that waits are known before the first clip.

        The model runs as well without: what cannot be measured, for want of memory say, is left out.
        """
        shortest = () if options.warm_frames is not None else (min(MEASURED_FRAMES, self.traits.frames),)
        for frames in options.frames_to_warm or shortest:
            try:
                self.paces.append(self._make_blank(frames))
            except Exception as error:
                if poisons_process(error):
                    raise
                log.warning("the pace of %d frames could not be measured: %s", frames, error)
                torch.cuda.empty_cache()

    def _make_blank(self, frames: int) -> Pace:
        """Make a clip that is thrown away; return how long it took."""
        started, width, height = time.perf_counter(), self.traits.width, self.traits.height
        steps: list[float] = []
        clip = Clip(
            prompt="",
            width=width,
            height=height,
            num_frames=frames,
            generated_frames=frames,
            fps=1,
            steps=WARM_STEPS,
            guidance_scale=6.0,
            seed=0,
        )
        picture = Image.new("RGB", (width, height)) if self.traits.takes_image else None
        prompts = self.encode("", "")
        latents = self._denoise(clip, prompts, lambda _: steps.append(time.perf_counter()), picture)
        # Where it had to be in tiles now, it is at once from now on.
        self.decodes_in_tiles = self.decode_to(lambda frames, _: deque(frames, maxlen=0), latents)
        took = time.perf_counter() - started
        log.info("%d frames of %dx%d: made in %.1f s", frames, width, height, took)
        # Without the first step, which carries what is done once.
        step, decoding = (steps[-1] - steps[0]) / (len(steps) - 1), started + took - steps[-1]
        return Pace(
            width=width, height=height, frames=frames, seconds_per_step=step, seconds_besides=decoding
        )

    def encode(self, prompt: str, negative_prompt: str) -> Prompts:
        """Encode what the transformer reads of the words. A thread that works ahead of the GPU may call it.

        The embedded models' vocabularies have no capitals, and T5Tokenizer forgets a normaliser when it is saved.
        """
        if self._lower_case:
            prompt, negative_prompt = prompt.lower(), negative_prompt.lower()
        return self._embed(prompt), self._embed(negative_prompt)

    def denoise(
        self, clip: Clip, prompts: Prompts, *, picture: Path | None = None, on_step: Callable[[int], None]
    ) -> torch.Tensor:
        """Return latents of shape (1, latent frames, channels, height/8, width/8), all finite.

        `picture`: the file that an image-to-video model starts from. `on_step` is called with the number of steps that
        the GPU has done, and may raise Canceled. The random numbers come from a CPU generator of this job's own, so the
        same input gives the same bits whatever ran before. Raises UnusableResult for values that are no picture.
        """
        start = None
        if picture is not None:
            with Image.open(picture) as image:  # cut to the clip's shape
                upright = ImageOps.exif_transpose(image).convert("RGB")
                start = ImageOps.fit(upright, (clip.width, clip.height))
        latents = self._denoise(clip, prompts, on_step, start)
        if not torch.isfinite(latents).all():
            raise UnusableResult("The model produced values that are not finite.")
        return latents

    def _denoise(
        self, clip: Clip, prompts: Prompts, on_step: Callable[[int], None], picture: Image.Image | None
    ) -> torch.Tensor:
        self._pipe.scheduler = fresh_scheduler(self._pipe)
        self.first_step_began = 0.0
        report = StepReport(on_step, self.device)
        try:
            self._turn_step_cache_on(clip)
            output = self._pipe(
                prompt_embeds=prompts[0],
                negative_prompt_embeds=prompts[1],
                width=clip.width,
                height=clip.height,
                num_frames=clip.generated_frames,
                num_inference_steps=clip.steps,
                guidance_scale=clip.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(clip.seed),
                callback_on_step_end=report,
                output_type="latent",
                **({"image": picture} if picture is not None else {}),
            )
        finally:
            # What it keeps would leak from a run that was cut off into the next, and take the decoding's place.
            if self._skipping is not None:
                self._skipping.begin([])
            elif self._pipe.transformer.is_cache_enabled:
                self._pipe.transformer.disable_cache()
        report.finish()
        # Models with a temporal patch (CogVideoX 1.5) add latent frames in front, as padding.
        wanted = (clip.generated_frames - 1) // self._pipe.vae_scale_factor_temporal + 1
        latents: torch.Tensor = output.frames[:, output.frames.shape[1] - wanted :]
        return latents

    def _turn_step_cache_on(self, clip: Clip) -> None:
        if self._skipping is not None:
            scheduler = fresh_scheduler(self._pipe)
            scheduler.set_timesteps(clip.steps)
            mask = mask_of(
                self._pipe.transformer,
                scheduler.timesteps,
                self.traits.skip_coefficients,
                strength=str(self.setup["step_cache"]),
            )
            self._skipping.begin(mask)
        # FasterCache compares the two halves of guidance, which are one without.
        elif self.setup["step_cache"] == "faster_cache" and clip.guidance_scale > 1:
            enable_faster_cache(self._pipe)

    def _note_first_step(self, *_: object) -> None:
        self.first_step_began = self.first_step_began or time.perf_counter()

    def decode(self, latents: torch.Tensor, *, tiled: bool = False) -> vae.Pieces:
        """Yield frames as they come, in pieces of shape (count, height, width, 3), RGB: 9, then 8 at a time.

        The pieces together are bit by bit what the VAE's `decode` gives. In tiles, for want of memory, all frames
        come at once.
        """
        scaled = 1 / self._pipe.vae_scaling_factor_image * latents.permute(0, 2, 1, 3, 4)
        yield from vae.decode(self._pipe.vae, scaled, tiled=tiled or self.decodes_in_tiles)

    def decode_to(self, take: Callable[[vae.Pieces, bool], object], latents: torch.Tensor) -> bool:
        """Let `take` have the frames, of tiles from anew if memory runs out; tell it, and return, whether they are."""
        try:
            take(self.decode(latents), self.decodes_in_tiles)
            return self.decodes_in_tiles
        except Exception as error:
            if self.decodes_in_tiles or not is_out_of_memory(error):
                raise
        # The error has ended here: while it is known, it keeps alive what filled the memory.
        log.warning("out of memory while decoding: once more, in tiles")
        torch.cuda.empty_cache()
        take(self.decode(latents, tiled=True), True)
        return True


class StepReport:
    """The pipeline's callback. Reports a step once the GPU has done it, and lets the CPU be one step ahead of it.

    Without this the CPU would queue many steps at once: progress would be reported too early, and a cancel would have
    to wait for all of them. With a wait for every step the GPU would idle while the CPU prepares the next.
    """

    def __init__(self, on_step: Callable[[int], None], device: torch.device) -> None:
        self._on_step = on_step
        self._device = device
        self._under_way: deque[tuple[int, torch.cuda.Event | None]] = deque()

    def __call__(self, _: object, index: int, __: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        done = None
        if self._device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        self._under_way.append((index + 1, done))
        self._report(leave=0 if done is None else 1)
        return kwargs

    def finish(self) -> None:
        """Report the last step."""
        self._report(leave=0)

    def _report(self, *, leave: int) -> None:
        while len(self._under_way) > leave:
            step, done = self._under_way.popleft()
            if done is not None:
                done.synchronize()
            self._on_step(step)


def memory_of(device: torch.device) -> Memory:
    """Measure the memory of the GPU; on a CPU, of the machine and this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device)
    else:
        total, free = psutil.virtual_memory()[:2]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RUSAGE_UNIT
    return Memory(total_mb=total // MEGABYTE, free_mb=free // MEGABYTE, peak_mb=peak // MEGABYTE)
