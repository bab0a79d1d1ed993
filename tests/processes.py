"""The platform's background processes, started for one test against the test database."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.fork_server import ForkedProcess, fork_server

PATIENCE_SECONDS = 60.0


def wait_for(
    what: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS, message: str = "", every: float = 0.05
) -> Any:
    """The first true answer of `what`, asked `every` so many seconds; a test fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(every)
    raise AssertionError(message or f"not true within {seconds:g} s: {what}")


class Processes:
    """`manage.py` commands that run until told to stop, each the leader of a process group of its own."""

    def __init__(self, *, database_url: str, media_root: Path, logs: Path, **environment: str) -> None:
        self.environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "MEDIA_ROOT": str(media_root),
        } | environment
        self.logs = logs
        self.running: dict[str, ForkedProcess] = {}

    def start(self, command: str, **environment: str) -> ForkedProcess:
        """Start `manage.py COMMAND`; its output goes to a log of that name."""
        log = self.logs / f"{command}.log"
        process = fork_server.start(command, environment=self.environment | environment, stdout=log)
        self.running[command] = process
        return process

    def kill(self, command: str) -> None:
        """SIGKILL the main process, and see that it died of it."""
        process = self.running.pop(command)
        assert process.poll() is None, f"{command} was not running any more: {self.log(command)}"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL

    def stop(self, command: str) -> int:
        """SIGTERM, and the exit status."""
        process = self.running.pop(command)
        process.terminate()
        return process.wait(15)

    def log(self, command: str) -> str:
        return (self.logs / f"{command}.log").read_text()

    def stop_all(self) -> None:
        """Kill what still runs, with all that it started; how it ends is no longer under test."""
        for process in self.running.values():
            if process.poll() is None:
                end_family(psutil.Process(process.pid))
            process.wait(10)
        self.running.clear()
        for log in sorted(self.logs.glob("run_*.log")):
            # pytest shows it when the test failed.
            print(f"--- {log.name}\n{log.read_text()}")


def end_family(process: psutil.Process) -> None:
    """Send SIGKILL to a process and its descendants; return when they are gone."""
    with suppress(psutil.NoSuchProcess):
        process.suspend()  # it starts no more
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        assert not still_alive(family)


def is_gone(process: psutil.Process) -> bool:
    """Tell whether it is dead; an orphan may wait for seconds to be reaped."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def still_alive(processes: Iterable[psutil.Process], *, seconds: float = 10.0) -> list[psutil.Process]:
    """Return those that have not ended after so many seconds."""
    deadline = time.monotonic() + seconds
    while (alive := [each for each in processes if not is_gone(each)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive
