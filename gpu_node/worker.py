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
from pathlib import Path
from typing import BinaryIO

import torch

from gpu_node import messages
from gpu_node.encoding import ClipEncoder
from gpu_node.engine.errors import (
    Canceled,
    ModelUnavailable,
    UnusableResult,
    free_memory,
    is_out_of_memory,
    poisons_process,
)
from gpu_node.engine.memory import memory_of
from gpu_node.engine.pipeline import GenerationInput, VideoPipeline
from gpu_node.engine.prompts import Prompts
from gpu_node.pipes import Inbox, Outbox
from gpu_node.settings import LOG_FORMAT, EngineOptions, shown_name
from gpu_node.timing import JobClock

log = logging.getLogger("gpu_node.worker")


class PromptStage(threading.Thread):
    """Encodes the prompts of jobs that wait, while the GPU is at another."""

    def __init__(self, inbox: Inbox, pipeline: VideoPipeline) -> None:
        super().__init__(name="prompts", daemon=True)
        self._inbox = inbox
        self._pipeline = pipeline
        self._ready: queue.SimpleQueue[tuple[messages.Run, Prompts | Exception, float]] = queue.SimpleQueue()
        self.start()

    def next(self) -> tuple[messages.Run, Prompts | Exception, float]:
        """Wait for a job whose prompt is encoded, or failed to be; and since when it is (perf_counter)."""
        return self._ready.get()

    def run(self) -> None:
        """The thread."""
        while True:
            job = self._inbox.next_run()
            encoded: Prompts | Exception
            try:
                encoded = self._pipeline.encode(job.prompt, job.negative_prompt)
            except Exception as error:  # it belongs to the job, and is raised when its turn comes
                encoded = error
            self._ready.put((job, encoded, time.perf_counter()))


class Worker:
    """Runs one job after the other on the GPU and reports on each."""

    def __init__(self, *, pipeline: VideoPipeline, inbox: Inbox, outbox: Outbox) -> None:
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
        return self._run(*self._prompts.next())

    def finish_files(self) -> None:
        """Wait until the clips that the GPU has done with are written."""
        for encoder in self._encoders:
            encoder.join()

    def _run(self, job: messages.Run, prompts: Prompts | Exception, ready_at: float) -> bool:
        """Run one job, whatever becomes of it. True when no other job can run in this process."""
        clock = JobClock(ready_at=ready_at, gpu_free_since=self._gpu_free_since)
        self._outbox.send(messages.Started(job_id=job.job_id))
        try:
            if isinstance(prompts, Exception):
                raise prompts
            self._make(job, prompts, clock)
        except Canceled:
            self._outbox.send(messages.Stopped(job_id=job.job_id, step=clock.steps_done))
        except Exception as error:
            log.exception("job %s failed", job.job_id)
            self._outbox.send(_failure(job, error))
            free_memory()
            return poisons_process(error)
        finally:
            self._gpu_free_since = time.perf_counter()
        return False

    def _make(self, job: messages.Run, prompts: Prompts, clock: JobClock) -> None:
        """Denoise and decode; the clip is finished beside the next job."""

        def on_step(step: int) -> None:
            clock.step_done(step)
            self._outbox.send(messages.Step(job_id=job.job_id, step=step))
            self._stop_if_canceled(job)

        self._stop_if_canceled(job)
        latents = self._pipeline.denoise(_input(job), prompts, on_step=on_step)
        clock.first_step_began(self._pipeline.first_step_began)
        if not self._fits_whole(job, latents, clock):
            log.warning("out of memory while decoding %s: once more, in tiles", job.job_id)
            free_memory()
            self._decode(job, latents, clock, tiled=True)

    def _fits_whole(self, job: messages.Run, latents: torch.Tensor, clock: JobClock) -> bool:
        """Decode in one piece; False when memory ran out.

        The error ends here, before anything is tried again: while it is known, it keeps alive what filled the memory.
        """
        try:
            self._decode(job, latents, clock, tiled=False)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _decode(self, job: messages.Run, latents: torch.Tensor, clock: JobClock, *, tiled: bool) -> None:
        encoder = ClipEncoder(
            path=Path(job.path), fps=job.fps, on_end=lambda error: self._on_clip_end(job, clock, tiled, error)
        )
        self._encoders = [*(known for known in self._encoders if known.is_alive()), encoder]
        try:
            wanted = job.num_frames
            for frames in self._pipeline.decode(latents, tiled=tiled):
                self._stop_if_canceled(job)
                encoder.add(frames[:wanted])
                wanted -= len(frames[:wanted])
                if not wanted:
                    break
        except BaseException:
            encoder.abandon()
            raise
        clock.gpu_done()
        encoder.finish()

    def _on_clip_end(self, job: messages.Run, clock: JobClock, tiled: bool, error: Exception | None) -> None:
        """In the encoder's thread: the file is there, or cannot be."""
        if error is not None:
            log.error("job %s: the clip cannot be written", job.job_id, exc_info=error)
            self._outbox.send(_failure(job, error))
            return
        done = messages.Done(
            job_id=job.job_id,
            seconds_per_step=clock.seconds_per_step,
            seconds_besides=clock.seconds_besides,
            idle_seconds=clock.idle_seconds,
            tiled=tiled or self._pipeline.decodes_in_tiles,
            memory=memory_of(self._pipeline.device),
        )
        self._outbox.send(done)

    def _stop_if_canceled(self, job: messages.Run) -> None:
        if self._inbox.is_canceled(job.job_id):
            raise Canceled


def _input(job: messages.Run) -> GenerationInput:
    return GenerationInput(
        width=job.width,
        height=job.height,
        frames=job.generated_frames,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        seed=job.seed,
        image=Path(job.image) if job.image is not None else None,
    )


def _failure(job: messages.Run, error: Exception) -> messages.Failed:
    code, message = "generation_failed", f"{type(error).__name__}: {error}"
    if isinstance(error, UnusableResult):
        code, message = "unusable_result", str(error)
    elif is_out_of_memory(error):
        code = "out_of_memory"
        message = (
            f"The GPU has too little memory for {job.generated_frames} frames of {job.width}x{job.height}."
        )
    elif poisons_process(error):
        code, message = "gpu_error", f"The GPU reported an error: {str(error).partition(chr(10))[0]}"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, message = "disk_full", "The node's disk is full."
    return messages.Failed(job_id=job.job_id, code=code, message=message[:1000])


def _take_over_stdout() -> BinaryIO:
    """Standard output for events alone: whatever a library prints goes to standard error."""
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return outbox


def _load(options: EngineOptions, outbox: Outbox) -> VideoPipeline | None:
    """The pipeline, or None after the failure was reported."""
    try:
        return VideoPipeline.load(options)
    except Exception as error:
        log.exception("the model cannot be loaded")
        outbox.send(_load_failure(options.model, error))
        return None


def _load_failure(model: str, error: Exception) -> messages.LoadFailed:
    """The reason is on /health, for anyone to read: without the folder's path."""
    if isinstance(error, ModelUnavailable):
        return messages.LoadFailed(reason=str(error), permanent=True)
    name = shown_name(model)
    reason = f"{name} cannot be loaded: {type(error).__name__}: {str(error).replace(model, name)}"
    return messages.LoadFailed(reason=reason[:1000], permanent=False)


def _ready(pipeline: VideoPipeline) -> messages.Ready:
    native = pipeline.native
    return messages.Ready(
        device=pipeline.device_name,
        width=native.width,
        height=native.height,
        frames=native.frames,
        frame_unit=native.frame_unit,
        takes_image=pipeline.takes_image,
        fixed_size=native.fixed_size,
        guidance_scale=native.guidance_scale,
        memory=memory_of(pipeline.device),
        setup=pipeline.setup,
    )


def main() -> int:
    """Load the model, then serve. The exit status is 1 when a new process is needed."""
    # A terminal's Ctrl-C and a supervisor's group-wide SIGTERM are for the HTTP process, which lets the clip finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options = EngineOptions.model_validate_json(sys.argv[1])
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT)
    outbox = Outbox(_take_over_stdout())
    inbox = Inbox(sys.stdin.buffer)
    pipeline = _load(options, outbox)
    if pipeline is None:
        return 1
    outbox.send(_ready(pipeline))
    Worker(pipeline=pipeline, inbox=inbox, outbox=outbox).serve()
    return 1


if __name__ == "__main__":
    sys.exit(main())
