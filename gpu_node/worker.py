"""The process that owns the model: `python -m gpu_node.worker OPTIONS`, started by the node's HTTP process.

Commands come on standard input, events go out on what was standard output. It lives as long as its input stays
open: when the HTTP process ends, however it ends, the pipe closes and this process ends too.

A clip goes through three threads, so that the GPU always has work: one encodes the prompts of jobs to come, the main
one denoises and decodes, and one for each clip turns frames into a file as they come.
"""

import errno
import logging
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from gpu_node import ipc
from gpu_node.engine.errors import (
    Canceled,
    ModelUnavailable,
    UnusableResult,
    is_out_of_memory,
    poisons_process,
)
from gpu_node.engine.pipeline import Prompts, VideoPipeline, memory_of
from gpu_node.engine.vae import Pieces
from gpu_node.settings import LOG_FORMAT, EngineOptions, shown_name
from gpu_node.video import ClipEncoder

log = logging.getLogger("gpu_node.worker")


@dataclass
class JobClock:
    """Times of one job on the GPU, from which its pace and the GPU's idle time follow; all in perf_counter seconds.

    `ready_at`: its prompt was encoded. `gpu_free_since`: the job before it had ended. `steps`: the GPU had done each.
    `gpu_done`: the last frame was decoded.
    """

    ready_at: float
    gpu_free_since: float | None
    began: float = field(default_factory=time.perf_counter)
    steps: list[float] = field(default_factory=list)
    first_step_began: float = 0.0
    gpu_done: float = 0.0

    @property
    def seconds_per_step(self) -> float:
        """Mean without the first step where there are more: it carries what is done once a job."""
        first, count = (self.steps[0], len(self.steps) - 1) if len(self.steps) > 1 else (self.began, 1)
        return (self.steps[-1] - first) / count

    @property
    def seconds_besides(self) -> float:
        """Time that the GPU spent on this job beyond its steps."""
        return max(0.0, self.gpu_done - self.began - self.seconds_per_step * len(self.steps))

    @property
    def idle_seconds(self) -> float | None:
        """Time from the end of the job before to this one's first step; None when this one was not there yet."""
        if self.gpu_free_since is None or self.ready_at > self.gpu_free_since:
            return None
        return self.first_step_began - self.gpu_free_since


class PromptStage(threading.Thread):
    """Encoder of the prompts of jobs that wait, while the GPU is at another."""

    def __init__(self, inbox: ipc.Inbox, pipeline: VideoPipeline) -> None:
        super().__init__(name="prompts", daemon=True)
        self._inbox = inbox
        self._pipeline = pipeline
        self._ready: queue.SimpleQueue[tuple[ipc.Run, Prompts | Exception, float]] = queue.SimpleQueue()
        self.start()

    def next(self) -> tuple[ipc.Run, Prompts | Exception, float]:
        """Wait for a job whose prompt is encoded, or failed to be; with the moment since when (perf_counter)."""
        return self._ready.get()

    def run(self) -> None:
        """Encode one prompt after the other, in this thread."""
        while True:
            job = self._inbox.next_run()
            encoded: Prompts | Exception
            try:
                encoded = self._pipeline.encode(job.clip.prompt, job.clip.negative_prompt)
            except Exception as error:  # it belongs to the job, and is raised when its turn comes
                encoded = error
            self._ready.put((job, encoded, time.perf_counter()))


class Worker:
    """The loop that runs one job after the other on the GPU and reports on each."""

    def __init__(self, *, pipeline: VideoPipeline, inbox: ipc.Inbox, outbox: ipc.Outbox) -> None:
        self._pipeline = pipeline
        self._inbox = inbox
        self._outbox = outbox
        self._prompts = PromptStage(inbox, pipeline)
        self._encoders: list[ClipEncoder] = []
        self._gpu_free_since: float | None = None

    def serve(self) -> None:
        """Run jobs until the process is poisoned by a CUDA error; the caller then ends it."""
        while not self.run_next():
            pass
        self.finish_files()

    def run_next(self) -> bool:
        """Wait for a job and run it, all but its file; True when no other can run in this process."""
        job, prompts, ready_at = self._prompts.next()
        clock = JobClock(ready_at=ready_at, gpu_free_since=self._gpu_free_since)
        self._outbox.send(ipc.Started(job_id=job.job_id))
        try:
            if isinstance(prompts, Exception):
                raise prompts
            self._make(job, prompts, clock)
        except Canceled:
            self._outbox.send(ipc.Stopped(job_id=job.job_id, step=len(clock.steps)))
        except Exception as error:
            log.exception("job %s failed", job.job_id)
            self._outbox.send(_failure(job, error))
            torch.cuda.empty_cache()
            return poisons_process(error)
        finally:
            self._gpu_free_since = time.perf_counter()
            self._inbox.forget(job.job_id)
        return False

    def finish_files(self) -> None:
        """Wait until the clips that the GPU has done with are written."""
        for encoder in self._encoders:
            encoder.join()

    def _make(self, job: ipc.Run, prompts: Prompts, clock: JobClock) -> None:
        """Denoise and decode; the clip is finished beside the next job."""

        def on_step(step: int) -> None:
            clock.steps.append(time.perf_counter())
            self._outbox.send(ipc.Step(job_id=job.job_id, step=step))
            self._stop_if_canceled(job)

        self._stop_if_canceled(job)
        picture = Path(job.image_path) if job.image_path is not None else None
        latents = self._pipeline.denoise(job.clip, prompts, picture=picture, on_step=on_step)
        clock.first_step_began = self._pipeline.first_step_began
        self._pipeline.decode_to(partial(self._write, job, clock), latents)

    def _write(self, job: ipc.Run, clock: JobClock, pieces: Pieces, tiled: bool) -> None:
        def on_end(error: Exception | None) -> None:
            self._on_clip_end(job, clock, tiled, error)

        encoder = ClipEncoder(path=Path(job.path), fps=job.clip.fps, on_end=on_end)
        self._encoders = [*(known for known in self._encoders if known.is_alive()), encoder]
        try:
            wanted = job.clip.num_frames
            for frames in pieces:
                self._stop_if_canceled(job)
                encoder.add(frames[:wanted])
                wanted -= len(frames[:wanted])
                if not wanted:
                    break
        except BaseException:
            encoder.abandon()
            raise
        clock.gpu_done = time.perf_counter()
        encoder.finish()

    def _on_clip_end(self, job: ipc.Run, clock: JobClock, tiled: bool, error: Exception | None) -> None:
        """Report, from the encoder's thread, that the file is there or cannot be."""
        if error is not None:
            log.error("job %s: the clip cannot be written", job.job_id, exc_info=error)
            self._outbox.send(_failure(job, error))
            return
        done = ipc.Done(
            job_id=job.job_id,
            seconds_per_step=clock.seconds_per_step,
            seconds_besides=clock.seconds_besides,
            idle_seconds=clock.idle_seconds,
            tiled=tiled,
            memory=memory_of(self._pipeline.device),
        )
        self._outbox.send(done)

    def _stop_if_canceled(self, job: ipc.Run) -> None:
        if self._inbox.is_canceled(job.job_id):
            raise Canceled


def _failure(job: ipc.Run, error: Exception) -> ipc.Failed:
    code, message = "generation_failed", f"{type(error).__name__}: {error}"
    if isinstance(error, UnusableResult):
        code, message = "unusable_result", str(error)
    elif is_out_of_memory(error):
        clip = job.clip
        message = (
            f"The GPU has too little memory for {clip.generated_frames} frames of {clip.width}x{clip.height}."
        )
        code = "out_of_memory"
    elif poisons_process(error):
        code, message = "gpu_error", f"The GPU reported an error: {str(error).partition(chr(10))[0]}"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, message = "disk_full", "The node's disk is full."
    return ipc.Failed(job_id=job.job_id, code=code, message=message[:1000])


def _load_failure(model: str, error: Exception) -> ipc.LoadFailed:
    """Report why the model cannot be loaded, on /health for anyone to read: without the folder's path."""
    if isinstance(error, ModelUnavailable):
        return ipc.LoadFailed(reason=str(error), permanent=True)
    name = shown_name(model)
    reason = f"{name} cannot be loaded: {type(error).__name__}: {str(error).replace(model, name)}"
    return ipc.LoadFailed(reason=reason[:1000], permanent=False)


def main() -> int:
    """Load the model, then serve. The exit status is 1 when a new process is needed."""
    # A terminal's Ctrl-C and a supervisor's group-wide SIGTERM are for the HTTP process, which lets the clip finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options = EngineOptions.model_validate_json(sys.argv[1])
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT)
    outbox = ipc.Outbox(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # events alone go to standard output: whatever a library prints goes to standard error
    inbox = ipc.Inbox(sys.stdin.buffer)
    try:
        pipeline = VideoPipeline.load(options, report=lambda detail: outbox.send(ipc.Loading(detail=detail)))
    except Exception as error:
        log.exception("the model cannot be loaded")
        outbox.send(_load_failure(options.model, error))
        return 1
    ready = ipc.Ready(
        device=pipeline.device_name,
        traits=pipeline.traits,
        memory=memory_of(pipeline.device),
        setup=pipeline.setup,
        paces=pipeline.paces,
    )
    outbox.send(ready)
    Worker(pipeline=pipeline, inbox=inbox, outbox=outbox).serve()
    return 1


if __name__ == "__main__":
    sys.exit(main())
