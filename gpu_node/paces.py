"""How long clips take on this node, learned from those it made."""

from dataclasses import dataclass
from typing import Any

from gpu_node.job import Job

NEW_WEIGHT = 0.3  # of the newest clip in the running average

Shape = tuple[int, int, int]  # width, height, generated frames


@dataclass
class Pace:
    """Of one shape: seconds a denoising step, and of the GPU's time all the rest (text, VAE)."""

    seconds_per_step: float
    seconds_besides: float


@dataclass
class Idleness:
    """How often, and how long in all, the GPU had stood idle between two clips though the second was waiting."""

    count: int = 0
    seconds: float = 0.0
    latest: float | None = None

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count, self.seconds, self.latest = self.count + 1, self.seconds + seconds, seconds


class Paces:
    """Running averages by the size and the frames of the clips."""

    def __init__(self) -> None:
        self._known: dict[Shape, Pace] = {}
        self.latest: float | None = None

    def learn(self, job: Job, *, seconds_per_step: float, seconds_besides: float) -> None:
        """A clip was made at this pace."""
        self.latest = seconds_per_step
        shape, new = _shape(job), Pace(seconds_per_step, seconds_besides)
        old = self._known.get(shape, new)
        self._known[shape] = Pace(
            old.seconds_per_step + NEW_WEIGHT * (new.seconds_per_step - old.seconds_per_step),
            old.seconds_besides + NEW_WEIGHT * (new.seconds_besides - old.seconds_besides),
        )

    def seconds_left(self, job: Job) -> float | None:
        """Until the GPU is done with the job, once it has begun; None before anything was measured.

        A shape that was never made is reckoned from the one nearest to it, by its number of pixels.
        """
        if not self._known:
            return None
        volume = _volume(_shape(job)) if job.width else None
        nearest = min(self._known, key=lambda shape: abs(_volume(shape) - (volume or _volume(shape))))
        pace, factor = self._known[nearest], (volume or _volume(nearest)) / _volume(nearest)
        return factor * ((job.steps - job.step) * pace.seconds_per_step + pace.seconds_besides)

    def listed(self) -> list[dict[str, Any]]:
        """For /health: one entry for each shape."""
        return [
            {
                "size": f"{width}x{height}",
                "frames": frames,
                "seconds_per_step": round(pace.seconds_per_step, 4),
                "seconds_besides": round(pace.seconds_besides, 4),
            }
            for (width, height, frames), pace in sorted(self._known.items())
        ]


def _shape(job: Job) -> Shape:
    return job.width or 0, job.height or 0, job.generated_frames or 0


def _volume(shape: Shape) -> int:
    return max(1, shape[0] * shape[1] * shape[2])
