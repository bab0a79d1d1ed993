"""Our GPU node as a real process, for tests: started on a free port, stopped or killed by its process id."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import requests

from tests import preforked

REPOSITORY = Path(__file__).resolve().parent.parent
T = TypeVar("T")
KEY = "node-key"
START_SECONDS = 120.0  # importing torch on a busy machine takes its time
STOP_SECONDS = 20.0


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(question: Callable[[], T | None], *, seconds: float = START_SECONDS, what: str = "it") -> T:
    """Ask until the answer is true, and return it. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.02)
    return answer


class NodeProcess:
    """`with NodeProcess.start(folder) as node:` then node.url, node.key, node.pid, node.health(), node.worker_pid()."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, port: int, key: str, folder: Path) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.key = key
        self.folder = folder
        self.save_dir = folder / "videos"

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        port: int | None = None,
        key: str = KEY,
        env: dict[str, str] | None = None,
        until: str | None = "ready",
        forked: bool = True,
    ) -> "NodeProcess":
        """Start `python -m gpu_node` with tiny-random, its clips in `folder`/videos and its log in `folder`/log.

        Waits until /health says `until`; None waits for nothing. forked: its worker comes from a process that has
        imported torch already, so it is there in a tenth of a second; False for the product's own way.
        """
        folder.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        settings = node_environment(folder, port=port, key=key) | (
            preforked.worker_settings() if forked else {}
        )
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gpu_node"],
                cwd=folder,  # so that no .env of the developer's is read
                env=settings | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        node = cls(process, port=port, key=key, folder=folder)
        if until is not None:
            node.wait_for(until)
        return node

    @property
    def pid(self) -> int:
        """The HTTP process."""
        return self._process.pid

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a client with the right key."""
        return {"x-api-key": self.key}

    def health(self) -> dict[str, Any]:
        """Ask /health; empty while there is no answer."""
        try:
            answer: dict[str, Any] = requests.get(f"{self.url}/health", timeout=5).json()
        except requests.ConnectionError:
            return {}
        return answer

    def wait_for(self, status: str) -> dict[str, Any]:
        """Wait until /health says `status`; stops the node and shows its log when it does not."""
        try:
            return wait_until(lambda: self._health_if(status), what=f"the node to be {status}")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; its log:\n{self.log()}") from None

    def _health_if(self, status: str) -> dict[str, Any] | None:
        assert self._process.poll() is None, f"the node ended with {self._process.returncode}"
        health = self.health()
        return health if health.get("status") == status else None

    def worker_pid(self) -> int | None:
        """The worker process; None while there is none."""
        for child in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if preforked.__file__ in child.cmdline():
                    return preforked.forked_pid(child.pid)
                if "gpu_node.worker" in child.cmdline():
                    return child.pid
        return None

    def log(self) -> str:
        """All that the node and its worker logged."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, to the HTTP process alone."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for the end; the exit status. Kills a node that does not end."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> "NodeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()


def node_environment(folder: Path, *, port: int, key: str) -> dict[str, str]:
    """This process's environment with the node's settings for a test."""
    ours = {
        name: value
        for name, value in os.environ.items()
        # torch, if a test imported it, has put the last one into this process's environment
        if not name.startswith(("GPU_NODE_", "VIDEO_API_", "TORCHINDUCTOR_"))
    }
    return ours | {
        "PYTHONPATH": str(REPOSITORY),
        "GPU_NODE_MODEL": "tiny-random",
        "GPU_NODE_PORT": str(port),
        "GPU_NODE_SAVE_DIR": str(folder / "videos"),
        "GPU_NODE_MIN_FREE_MB": "1",
        "VIDEO_API_KEY": key,
    }
