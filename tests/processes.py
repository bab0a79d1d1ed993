"""The platform's background processes, started for one test against the test database."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.environment import REPOSITORY

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
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `manage.py COMMAND`; its output goes to a log of that name."""
        with (self.logs / f"{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "manage.py"), command],
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
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
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        self.running.clear()
        for log in sorted(self.logs.glob("run_*.log")):
            # pytest shows it when the test failed.
            print(f"--- {log.name}\n{log.read_text()}")
