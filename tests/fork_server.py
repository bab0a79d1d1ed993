"""A process that has loaded Django and the apps, and forks one for each `manage.py` command that a test runs.

Starting Python and loading them takes longer than most commands take. The forked process equals `manage.py COMMAND` in
the given environment: it reads the settings anew, and modules that only one command imports are imported after the
fork. Tests of the start itself run the command as a program.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.01
# Third-party modules that take long to import; none of the platform's own comes with them.
PRELOADED = ("django.core.management.commands.shell", "httpx", "telegram.ext", "telegram.request")


class ForkedProcess:
    """The `subprocess.Popen` of a forked command, which leads a session and a process group of its own."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + timeout if timeout is not None else None
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(POLL_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The client's side. The first request starts the server, in the environment of that moment."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, *arguments: str, environment: Mapping[str, str], stdout: Path, stderr: Path | None = None
    ) -> ForkedProcess:
        """Start `manage.py ARGUMENTS`. Output is appended to the files; without `stderr` all of it to `stdout`."""
        for output in (stdout, stderr or stdout):
            output.touch()  # it may be read before the process has begun
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "stdout": str(stdout),
            "stderr": str(stderr or stdout),
        }
        return ForkedProcess(self, self.ask(request))

    def run(self, *arguments: str, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        """Run `manage.py ARGUMENTS` to its end, within two minutes."""
        with tempfile.TemporaryDirectory() as folder:
            output = {name: Path(folder, name) for name in ("stdout", "stderr")}
            process = self.start(*arguments, environment=environment, **output)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            said = {name: file.read_text() for name, file in output.items()}
        return subprocess.CompletedProcess(arguments, process.wait(), **said)

    def ask(self, request: Mapping[str, Any]) -> Any:
        if self._process is None:
            self._launch()
        self._channel.write(json.dumps(request) + "\n")
        self._channel.flush()
        answer = self._channel.readline()
        assert answer, "the fork server died"
        return json.loads(answer)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = ours.makefile("rw")
        command = [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        ours.close()

    def stop(self) -> None:
        """End the server and the forked processes that still run."""
        if self._process is not None:
            self._channel.close()
            self._process.wait(30)
            self._process = None


fork_server = ForkServer()


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the other side hangs up. In a forked process: return its request."""
    running: set[int] = set()
    with channel, channel.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            if "poll" in request:
                pid, status = os.waitpid(request["poll"], os.WNOHANG)
                running.discard(pid)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            else:
                answer = os.fork()
                if answer == 0:
                    return dict(request)
                running.add(answer)
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return None


def become(request: Mapping[str, Any]) -> None:
    """Turn this forked process into what the command is at its start."""
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["manage.py", *request["arguments"]]
    read_settings_anew()


def read_settings_anew() -> None:
    """Take the settings from the environment, and send `setting_changed` as `override_settings` does."""
    from django.conf import settings
    from django.core.signals import setting_changed
    from django.db import connections
    from django.test import signals  # noqa: F401  (its receivers drop caches of old settings)
    from django.utils.log import configure_logging

    fresh = runpy.run_path(str(REPOSITORY / "videoplatform" / "settings.py"))
    for name, value in fresh.items():
        if name.isupper() and getattr(settings, name, None) != value:
            setattr(settings, name, value)
            if name != "DATABASES":
                setting_changed.send(sender=None, setting=name, value=value, enter=True)
    connections.settings = connections.configure_settings(settings.DATABASES)
    for alias in connections:
        with suppress(AttributeError):
            del connections[alias]
    _configure_django_q()
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)


def _configure_django_q() -> None:
    """Renew django-q2's constants, made at import, in the class that its modules have imported."""
    from django_q import conf

    old = conf.Conf
    conf = importlib.reload(conf)
    for name, value in vars(conf.Conf).items():
        if name.isupper():
            setattr(old, name, value)
    conf.Conf = old


def main() -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")
    django.setup()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        become(request)
        import manage

        manage.main()


if __name__ == "__main__":
    main()
