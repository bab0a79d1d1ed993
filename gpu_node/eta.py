"""Estimates of how long clips take on this node, learned from those it made."""

from dataclasses import dataclass
from typing import Any

from gpu_node.queue import Job

NEW_WEIGHT = 0.3  # of the newest clip in the running average

Shape = tuple[int, int, int]  # width, height, generated frames


@dataclass
class Pace:
    """Running averages of one shape: seconds a denoising step, and of the GPU's time all the rest (text, VAE)."""

    seconds_per_step: float
    seconds_besides: float


@dataclass
class IdleTime:
    """Gaps in which the GPU stood idle between two clips though the second was waiting."""

    count: int = 0
    seconds: float = 0.0
    latest: float | None = None

    def add(self, seconds: float) -> None:
        """Count one more gap."""
        self.count, self.seconds, self.latest = self.count + 1, self.seconds + seconds, seconds


class Estimates:
    """Running averages by the size and the frames of the clips."""

    def __init__(self) -> None:
        self._paces: dict[Shape, Pace] = {}
        self.seconds_per_step: float | None = None  # of the latest clip

    def learn(self, job: Job, *, seconds_per_step: float, seconds_besides: float) -> None:
        """Take in a clip that was made at this pace."""
        self.seconds_per_step = seconds_per_step
        pace = self._paces.setdefault(_shape(job), Pace(seconds_per_step, seconds_besides))
        pace.seconds_per_step += NEW_WEIGHT * (seconds_per_step - pace.seconds_per_step)
        pace.seconds_besides += NEW_WEIGHT * (seconds_besides - pace.seconds_besides)

    def seconds_left(self, job: Job) -> float | None:
        """Return the seconds until the GPU is done with the job, once it has begun; None before anything was measured.

        A shape that was never made is reckoned from the one nearest to it, by its number of pixels.
        """
        if not self._paces:
            return None
        volume = _volume(_shape(job)) if job.width else None
        nearest = min(self._paces, key=lambda shape: abs(_volume(shape) - (volume or _volume(shape))))
        pace, factor = self._paces[nearest], (volume or _volume(nearest)) / _volume(nearest)
        return factor * ((job.steps - job.step) * pace.seconds_per_step + pace.seconds_besides)

    def listed(self) -> list[dict[str, Any]]:
        """Return one entry for each shape, as /health shows them."""
        return [
            {
                "size": f"{width}x{height}",
                "frames": frames,
                "seconds_per_step": round(pace.seconds_per_step, 4),
                "seconds_besides": round(pace.seconds_besides, 4),
            }
            for (width, height, frames), pace in sorted(self._paces.items())
        ]


def _shape(job: Job) -> Shape:
    return job.width or 0, job.height or 0, job.generated_frames or 0


def _volume(shape: Shape) -> int:
    return max(1, shape[0] * shape[1] * shape[2])
