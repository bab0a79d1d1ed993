"""Estimates of how long clips take on this node: measured at start-up, then learned from the clips it made."""

from collections.abc import Iterable
from typing import Any

from gpu_node.ipc import Pace
from gpu_node.queue import Job

NEW_WEIGHT = 0.3  # of the newest clip in the running average


class Estimates:
    """Running averages by the size and the frames of the clips."""

    def __init__(self) -> None:
        # (width, height, generated frames) → seconds a denoising step, and of the GPU's time all the rest (text, VAE)
        self._paces: dict[tuple[int, int, int], tuple[float, float]] = {}
        self.seconds_per_step: float | None = None  # of the latest clip

    def begin_with(self, paces: Iterable[Pace]) -> None:
        """Take in what was measured at start-up, of shapes of which no clip was made yet."""
        for pace in paces:
            shape = (pace.width, pace.height, pace.frames)
            self._paces.setdefault(shape, (pace.seconds_per_step, pace.seconds_besides))

    def learn(self, job: Job, *, seconds_per_step: float, seconds_besides: float) -> None:
        """Take in a clip that was made at this pace."""
        self.seconds_per_step = seconds_per_step
        assert job.width and job.height and job.generated_frames, "the model's defaults are filled in"
        shape = (job.width, job.height, job.generated_frames)
        step, besides = self._paces.get(shape, (seconds_per_step, seconds_besides))
        self._paces[shape] = (
            step + NEW_WEIGHT * (seconds_per_step - step),
            besides + NEW_WEIGHT * (seconds_besides - besides),
        )

    def seconds_left(self, job: Job) -> float | None:
        """Return the seconds until the GPU is done with the job, once it has begun; None before anything was measured.

        A shape that was never made is reckoned from the one nearest to it, by its number of pixels.
        """
        volume = (job.width or 0) * (job.height or 0) * (job.generated_frames or 0)
        paces = {width * height * frames: pace for (width, height, frames), pace in self._paces.items()}
        if not paces:
            return None
        nearest = min(paces, key=lambda known: abs(known - volume)) if volume else next(iter(paces))
        step, besides = paces[nearest]
        return (volume or nearest) / nearest * ((job.steps - job.step) * step + besides)

    def listed(self) -> list[dict[str, Any]]:
        """Return one entry for each shape, as /health shows them."""
        return [
            {
                "size": f"{width}x{height}",
                "frames": frames,
                "seconds_per_step": round(step, 4),
                "seconds_besides": round(besides, 4),
            }
            for (width, height, frames), (step, besides) in sorted(self._paces.items())
        ]
