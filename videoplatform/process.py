"""A whole platform as a child process, for the demo and the tests: `make run` on free ports, in its own DATA_DIR."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from videoplatform.run import BASE_DIR, ENDED, NOT_STARTED, healthz_status

START_SECONDS = 180.0
STOP_SECONDS = 60.0
FAILED_STARTS = 5  # the launcher itself tries for ever


class InstanceFailed(Exception):
    """The platform did not start, or a command of it failed. The message holds the end of its log."""


def free_port() -> int:
    """Find a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Instance:
    """One platform: `with Instance(data_dir) as platform: platform.url …`. Its own database, files, node and secrets.

    settings: further environment variables. `.env` and the environment are overruled where they would point the
    instance at another database, node, bot or bucket.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir).resolve()
        self.port, self.node_port = free_port(), free_port()
        self.log = self.data_dir / "logs" / "run.log"
        self.environment = {**os.environ, **self._isolation(), **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def _isolation(self) -> dict[str, str]:
        ours = ("DATABASE_URL", "DATABASE_LISTEN_URL", "VIDEO_API_URL", "TELEGRAM_BOT_TOKEN", "S3_BUCKET")
        return dict.fromkeys(ours, "") | {
            "DATA_DIR": str(self.data_dir),
            "MEDIA_ROOT": str(self.data_dir / "media"),
            # The code's, not the data's: collected once for all.
            "STATIC_ROOT": str(BASE_DIR / ".data" / "static"),
            "WEB_HOST": "127.0.0.1",
            "PORT": str(self.port),
            "SITE_URL": self.url,
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "DEBUG": "false",
            "SECURE_SSL_REDIRECT": "false",
            "SECRET_KEY": secrets.token_urlsafe(48),
            "VIDEO_API_KEY": secrets.token_urlsafe(32),
            "GPU_NODE_HOST": "127.0.0.1",
            "GPU_NODE_PORT": str(self.node_port),
            "GPU_NODE_MODEL": "tiny",
            "GPU_NODE_SAVE_DIR": str(self.data_dir / "gpu_node" / "videos"),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def node_url(self) -> str:
        return f"http://127.0.0.1:{self.node_port}"

    @property
    def pid(self) -> int:
        """The process of `videoplatform.run`, which supervises the others."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> Self:
        """Start everything; return when the site answers. Raises InstanceFailed."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch(mode=0o600)  # it shows the first staff user's password
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "videoplatform.run", "--leash"],
                cwd=BASE_DIR,
                env=self.environment,
                stdin=subprocess.PIPE,  # the leash: it stops when this process is gone, in whatever way
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops it in order
            )
        try:
            self._await_site()
        except BaseException:
            self.stop()
            raise
        return self

    def _await_site(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise InstanceFailed(f"The platform did not start.\n{self.log_tail()}")
            if healthz_status("127.0.0.1", self.port, timeout=5) == 200:
                return
            text = self.log.read_text(errors="replace")
            if sum(text.count(f"{'web':>10} | {why}") for why in (ENDED, NOT_STARTED)) >= FAILED_STARTS:
                raise InstanceFailed(f"The web process does not start.\n{self.log_tail()}")
            time.sleep(0.1)
        raise InstanceFailed(f"The site did not answer within {START_SECONDS:.0f} s.\n{self.log_tail()}")

    def manage(self, *arguments: str) -> str:
        """Run a `manage.py` command in this instance and return what it prints. Raises InstanceFailed."""
        result = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=BASE_DIR,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if result.returncode != 0:
            raise InstanceFailed(f"manage.py {' '.join(arguments)}: {result.stderr or result.stdout}")
        return result.stdout

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the output of all processes."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join([*text.splitlines()[-lines:], f"(from {self.log})"])

    def stop(self) -> None:
        """Stop everything and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            process.stdin.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
