"""When a job was at which stage, from which its pace and the GPU's idle time follow. Times are perf_counter seconds."""

import time


class JobClock:
    """Of one job on the GPU. `ready_at`: its prompt was encoded; `gpu_free_since`: the job before it had ended."""

    def __init__(self, *, ready_at: float, gpu_free_since: float | None) -> None:
        self._ready_at = ready_at
        self._gpu_free_since = gpu_free_since
        self._began = time.perf_counter()
        self._ended = self._began
        self._steps = [self._began]
        self._first_step_began = self._began
        self.steps_done = 0

    def step_done(self, step: int) -> None:
        """The GPU has done `step` steps."""
        self.steps_done = step
        self._steps.append(time.perf_counter())

    def first_step_began(self, moment: float) -> None:
        """The model was first called at this moment."""
        self._first_step_began = moment

    def gpu_done(self) -> None:
        """The last frame is decoded."""
        self._ended = time.perf_counter()

    @property
    def seconds_per_step(self) -> float:
        """Without the first step where there are more: it carries what is done once a job."""
        skipped = 1 if len(self._steps) > 2 else 0
        return (self._steps[-1] - self._steps[skipped]) / (len(self._steps) - 1 - skipped)

    @property
    def seconds_besides(self) -> float:
        """What the GPU was at this job beyond its steps."""
        return max(0.0, self._ended - self._began - self.seconds_per_step * self.steps_done)

    @property
    def idle_seconds(self) -> float | None:
        """From the end of the job before to this one's first step; None when this one was not there yet."""
        if self._gpu_free_since is None or self._ready_at > self._gpu_free_since:
            return None
        return self._first_step_began - self._gpu_free_since
