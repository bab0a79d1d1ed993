"""The process that owns the pipeline: `python -m gpu_node.worker`, started by the node's HTTP process.

Commands come on standard input, events go out on what was standard output. It lives as long as its input stays
open: when the HTTP process ends, however it ends, the pipe closes and this process ends too.
"""

import argparse
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

from gpu_node import messages
from gpu_node.pipeline import (
    Canceled,
    GenerationInput,
    ModelUnavailable,
    UnusableResult,
    VideoPipeline,
    free_memory,
    is_out_of_memory,
    poisons_process,
)
from gpu_node.settings import LOG_FORMAT, shown_name
from gpu_node.video import write_mp4

log = logging.getLogger("gpu_node.worker")


class Inbox:
    """Commands read by a thread, so that a cancel arrives while a job runs."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._runs: queue.SimpleQueue[messages.Run] = queue.SimpleQueue()
        self._canceled: set[str] = set()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next_run(self) -> messages.Run:
        """Wait for the next job."""
        return self._runs.get()

    def is_canceled(self, job_id: str) -> bool:
        """Whether the job is to stop."""
        return job_id in self._canceled

    def _read(self) -> None:
        try:
            for line in self._source:
                command = messages.COMMANDS.validate_json(line)
                if isinstance(command, messages.Run):
                    self._runs.put(command)
                else:
                    self._canceled.add(command.job_id)
        except Exception:
            log.exception("a command cannot be read")
        finally:
            os._exit(0)  # the HTTP process is gone: nobody would take the result


class Worker:
    """Runs one job after the other and reports on each."""

    def __init__(self, *, pipeline: VideoPipeline, inbox: Inbox, outbox: BinaryIO) -> None:
        self._pipeline = pipeline
        self._inbox = inbox
        self._outbox = outbox
        self._step = 0

    def serve(self) -> None:
        """Run jobs until the process is poisoned by a CUDA error; the caller then ends it."""
        poisoned = False
        while not poisoned:
            poisoned = self._run(self._inbox.next_run())

    def _run(self, job: messages.Run) -> bool:
        """Run one job, whatever becomes of it. True when no other job can run in this process."""
        self._step = 0
        try:
            seconds_per_step = self._make(job)
        except Canceled:
            self._send(messages.Stopped(job_id=job.job_id, step=self._step))
        except Exception as error:
            log.exception("job %s failed", job.job_id)
            self._send(_failure(job, error))
            free_memory()
            return poisons_process(error)
        else:
            self._send(messages.Done(job_id=job.job_id, seconds_per_step=seconds_per_step))
        return False

    def _make(self, job: messages.Run) -> float:
        """Make the clip; seconds a step, without the first where there are more (it carries the warm-up)."""
        times = [time.perf_counter()]

        def on_step(step: int) -> None:
            self._step = step
            times.append(time.perf_counter())
            self._send(messages.Step(job_id=job.job_id, step=step))
            self._stop_if_canceled(job)

        self._stop_if_canceled(job)
        latents = self._pipeline.denoise(_input(job), on_step=on_step)
        frames = self._pipeline.decode(latents)[: job.num_frames]
        self._stop_if_canceled(job)
        write_mp4(frames=frames, fps=job.fps, path=Path(job.path))
        return _seconds_per_step(times)

    def _stop_if_canceled(self, job: messages.Run) -> None:
        if self._inbox.is_canceled(job.job_id):
            raise Canceled

    def _send(self, event: messages.Event) -> None:
        send(self._outbox, event)


def send(outbox: BinaryIO, event: messages.Event) -> None:
    """Write one event and flush it. Ends the process when nobody reads any more."""
    try:
        outbox.write(messages.to_line(event))
        outbox.flush()
    except BrokenPipeError:
        os._exit(0)


def _seconds_per_step(times: list[float]) -> float:
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def _input(job: messages.Run) -> GenerationInput:
    return GenerationInput(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        frames=job.generated_frames,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        seed=job.seed,
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
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code, message = "disk_full", "The node's disk is full."
    return messages.Failed(job_id=job.job_id, code=code, message=message[:1000])


def _take_over_stdout() -> BinaryIO:
    """Standard output for events alone: whatever a library prints goes to standard error."""
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return outbox


def _load(options: argparse.Namespace, outbox: BinaryIO) -> VideoPipeline | None:
    """The pipeline, or None after the failure was reported."""
    try:
        return VideoPipeline.load(model=options.model, device=options.device, cache_dir=options.cache_dir)
    except Exception as error:
        log.exception("the model cannot be loaded")
        send(outbox, _load_failure(options.model, error))
        return None


def _load_failure(model: str, error: Exception) -> messages.LoadFailed:
    """The reason is on /health, for anyone to read: without the folder's path."""
    if isinstance(error, ModelUnavailable):
        return messages.LoadFailed(reason=str(error), permanent=True)
    name = shown_name(model)
    reason = f"{name} cannot be loaded: {type(error).__name__}: {str(error).replace(model, name)}"
    return messages.LoadFailed(reason=reason[:1000], permanent=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpu_node.worker")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--cache-dir", required=True, type=Path)
    parser.add_argument("--log-level", default="info")
    return parser.parse_args()


def main() -> int:
    """Load the model, then serve. The exit status is 1 when a new process is needed."""
    # A terminal's Ctrl-C and a supervisor's group-wide SIGTERM are for the HTTP process, which lets the clip finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    options = _options()
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT)
    outbox = _take_over_stdout()
    inbox = Inbox(sys.stdin.buffer)
    pipeline = _load(options, outbox)
    if pipeline is None:
        return 1
    width, height = pipeline.native_size
    send(
        outbox,
        messages.Ready(device=pipeline.device, width=width, height=height, frames=pipeline.native_frames),
    )
    Worker(pipeline=pipeline, inbox=inbox, outbox=outbox).serve()
    return 1


if __name__ == "__main__":
    sys.exit(main())
