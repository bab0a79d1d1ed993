"""The worker's ends of the two pipes: commands come in, events go out."""

import logging
import os
import queue
import threading
from typing import BinaryIO

from gpu_node import messages

log = logging.getLogger(__name__)


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


class Outbox:
    """Events written one at a time, whichever thread they come from."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._lock = threading.Lock()

    def send(self, event: messages.Event) -> None:
        """Write one event and flush it. Ends the process when nobody reads any more."""
        try:
            with self._lock:
                self._target.write(messages.to_line(event))
                self._target.flush()
        except BrokenPipeError:
            os._exit(0)
