"""`make run`: every process of the platform on this machine, supervised in the foreground until Ctrl-C.

Reads `.env`, works out which programs of supervisord.conf run and with what environment, prepares the database, then
supervises. One process is launcher, supervisor and console: it restarts what dies (and first ends what is left of its
process group), shows the logs with a prefix, and says where to go once the site answers.

Ends with 2 and a sentence when it cannot start: another one runs in this DATA_DIR, a port is taken, or a setting cannot
be read.
"""

import argparse
import fcntl
import getpass
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil
from environs import Env, EnvError, validate
from supervisor import events
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from videoplatform.bootstrap import write_secrets

BASE_DIR = Path(__file__).resolve().parent.parent
PORTS = validate.Range(min=1, max=65535)
PROGRAMS = ("postgres", "web", "worker", "reconciler", "gpu_node", "bot")
# In the environment of every process started here, so that a later start finds what an earlier one left behind.
MARK = "VIDEOPLATFORM_RUN"
ENDED, NOT_STARTED = "ended unexpectedly; it is started again", "did not start; trying again"
GIVEN_UP = "is not started again: mend what it says above, and start anew. Everything else goes on"


class CannotRun(Exception):
    """`make run` cannot start. The message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What will run, and where."""

    data_dir: Path
    host: str
    port: int
    node_port: int | None  # None: the GPU node runs elsewhere
    embedded_postgres: bool
    bot: bool
    node_url: str

    @property
    def url(self) -> str:
        shown = "localhost" if self.host in {"127.0.0.1", "0.0.0.0", "::", "::1"} else self.host  # noqa: S104
        return f"http://{shown}:{self.port}"


def make_plan(env: Env) -> Plan:
    """Read the plan from the environment; docs/configuration.md describes the names. Raises EnvError."""
    node_port = env.int("GPU_NODE_PORT", 8081, validate=PORTS)
    node_url = env.str("VIDEO_API_URL", "") or f"http://127.0.0.1:{node_port}"
    address = urlsplit(node_url)
    local = address.hostname in {"127.0.0.1", "localhost", "::1"} and address.port == node_port
    return Plan(
        data_dir=env.path("DATA_DIR", BASE_DIR / ".data").resolve(),
        host=env.str("WEB_HOST", "127.0.0.1"),
        port=env.int("PORT", 8000, validate=PORTS),
        node_port=node_port if local else None,
        embedded_postgres=not env.str("DATABASE_URL", ""),
        bot=bool(env.str("TELEGRAM_BOT_TOKEN", "")),
        node_url=node_url,
    )


def environment_of(plan: Plan) -> dict[str, str]:
    """What supervisord.conf and the programs read, beyond what the person set."""
    bind_host = f"[{plan.host}]" if ":" in plan.host else plan.host
    chosen = {
        "DATA_DIR": str(plan.data_dir),
        "PORT": str(plan.port),
        "VIDEO_API_URL": plan.node_url,
        "PYTHONUNBUFFERED": "1",
        "VIDEOPLATFORM_PYTHON": sys.executable,
        "VIDEOPLATFORM_USER": getpass.getuser(),
        "VIDEOPLATFORM_BIND": f"{bind_host}:{plan.port}",
        "VIDEOPLATFORM_POSTGRES": str(plan.embedded_postgres).lower(),
        "VIDEOPLATFORM_GPU_NODE": str(plan.node_port is not None).lower(),
        "VIDEOPLATFORM_BOT": str(plan.bot).lower(),
        MARK: str(plan.data_dir),
    }
    defaults = {
        "WEB_PROCESSES": "2",
        "GPU_NODE_PORT": str(plan.node_port or 8081),
        "GPU_NODE_MODEL": "tiny",
        "GPU_NODE_SAVE_DIR": str(plan.data_dir / "gpu_node" / "videos"),
        "GPU_NODE_CACHE_DIR": str(BASE_DIR / ".data" / "models"),
    }
    return chosen | {name: value for name, value in defaults.items() if not os.environ.get(name)}


# --- Before anything starts -------------------------------------------------------------------------------------------
@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Refuse to run twice in one DATA_DIR; end what an earlier run left behind when its supervisor was killed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    # Without a mail server, the links that reset a password are printed there.
    (data_dir / "logs").mkdir(mode=0o700, exist_ok=True)
    with (data_dir / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotRun(f"It already runs here (data in {data_dir}). Stop that one first.") from error
        end_leftovers(data_dir)
        yield


def end_leftovers(data_dir: Path) -> None:
    """End the processes of an earlier run whose supervisor is gone. PostgreSQL is not among them: it is adopted."""
    left = [process for process in psutil.process_iter() if _mark_of(process) == str(data_dir)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=10)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=10)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK) if process.pid != os.getpid() else None
    except (psutil.Error, OSError):  # gone by now, or somebody else's
        return None


def check_port(host: str, port: int, variable: str) -> None:
    """Raise CannotRun when another program listens there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CannotRun(
            f"Cannot listen on {host} port {port}: {error.strerror}. "
            f"Choose another one: make run {variable}={port + 10}"
        ) from error


def prepare_installation() -> str:
    """Migrate and so on, in a process of its own. Returns its words for the person."""
    command = [sys.executable, "-m", "videoplatform.bootstrap"]
    result = subprocess.run(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise CannotRun(f"{result.stdout}The database could not be prepared; see above.")
    return result.stdout


# --- While it runs ----------------------------------------------------------------------------------------------------
class Console:
    """Shows the programs' logs in the terminal, each line with its program's name, and greets when the site answers."""

    def __init__(self, plan: Plan, words: str) -> None:
        self._plan, self._words = plan, words
        self._logs: dict[str, IO[bytes]] = {}
        self._greeted = False
        for name in PROGRAMS:
            path = plan.data_dir / "logs" / f"{name}.log"
            path.touch()
            self._logs[name] = path.open("rb")
            self._logs[name].seek(0, os.SEEK_END)

    def say(self, words: str) -> None:
        """Print at once, also into a pipe; a terminal that is gone is no reason to stop."""
        with suppress(OSError):
            print(words, flush=True)

    def pump(self) -> None:
        """Print what the logs have got since the last call."""
        for name, log in list(self._logs.items()):
            for line in _whole_lines(log):
                self.say(f"{name:>10} | {line}")
            self._follow_rotation(name)
        if not self._greeted and _answers(self._plan):
            self._greeted = True
            self._greet()

    def _follow_rotation(self, name: str) -> None:
        path = self._plan.data_dir / "logs" / f"{name}.log"
        if path.exists() and path.stat().st_ino != os.fstat(self._logs[name].fileno()).st_ino:
            self._logs[name].close()
            self._logs[name] = path.open("rb")

    def _greet(self) -> None:
        node = f"GPU node: {self._plan.node_url}" + (
            " (the tiny demonstration model: docs/embedded-model.md)"
            if os.environ["GPU_NODE_MODEL"] == "tiny" and self._plan.node_port
            else ""
        )
        staff = (
            self._words.strip()
            or "Staff sign in as before; a new password: .venv/bin/python manage.py changepassword admin"
        )
        self.say(
            f"\n  Ready: {self._plan.url}   (staff: {self._plan.url}/admin/, API: {self._plan.url}/v1/docs)\n"
            f"  {staff}\n  {node}\n  Stop with Ctrl-C.\n"
        )


def _whole_lines(log: IO[bytes]) -> Iterator[str]:
    while line := log.readline():
        if not line.endswith(b"\n"):  # still being written: read it again next time
            log.seek(-len(line), os.SEEK_CUR)
            return
        yield line.decode(errors="replace").rstrip()


def _answers(plan: Plan) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plan.host, plan.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, plan.port, timeout=1)
    try:
        connection.request("GET", "/healthz", headers={"Host": f"localhost:{plan.port}"})
        return connection.getresponse().status < 500  # 400: it is up, and localhost is not in ALLOWED_HOSTS
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class PlatformSupervisor(Supervisor):
    """supervisord that ends the rest of a process group when its leader dies, and tells the console what happens."""

    def __init__(self, options: ServerOptions, console: Console, *, leash: bool) -> None:
        super().__init__(options)
        self._console, self._leash = console, leash

    def runforever(self) -> None:
        """Called by supervisor when its configuration is read."""
        events.subscribe(events.ProcessStateExitedEvent, self._on_exit)
        events.subscribe(events.ProcessStateStoppedEvent, self._on_exit)
        events.subscribe(events.ProcessStateBackoffEvent, self._on_failed_start)
        super().runforever()

    def tick(self, now: float | None = None) -> None:
        """Called by supervisor about once a second, and whenever a program wrote something."""
        super().tick(now)
        self._console.pump()
        if self._leash and select.select([sys.stdin], [], [], 0)[0] and not os.read(sys.stdin.fileno(), 1024):
            self._leash = False
            os.kill(os.getpid(), signal.SIGTERM)

    def _on_exit(self, event: events.ProcessStateEvent) -> None:
        process = event.process
        with suppress(ProcessLookupError):  # the usual case: nothing is left of the group
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(event, events.ProcessStateExitedEvent):
            self._console.pump()  # its last words come first
            self._console.say(f"{process.config.name:>10} | {GIVEN_UP if event.expected else ENDED}")

    def _on_failed_start(self, event: events.ProcessStateEvent) -> None:
        self._console.say(f"{event.process.config.name:>10} | {NOT_STARTED}")


def supervise(console: Console, *, leash: bool) -> None:
    """Run the programs of supervisord.conf until SIGINT, SIGTERM, or SIGHUP (the terminal was closed).

    leash: also stop when standard input ends, which says that whoever started this is gone.
    """
    options = ServerOptions()
    options.realize(["-c", str(BASE_DIR / "supervisord.conf")], doc=__doc__)
    options.first, options.test = True, False
    with suppress(asyncore.ExitNow):  # how supervisor says that everything has stopped
        PlatformSupervisor(options, console, leash=leash).main()
    console.pump()


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, supervise, stop."""
    parser = argparse.ArgumentParser(
        prog="python -m videoplatform.run", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--leash", action="store_true", help="stop when standard input ends, too")
    leash = parser.parse_args(arguments).leash
    write_secrets(BASE_DIR / ".env")
    env = Env()
    env.read_env(str(BASE_DIR / ".env"), recurse=False)
    try:
        plan = make_plan(env)
        with only_one(plan.data_dir):
            check_port(plan.host, plan.port, "PORT")
            if plan.node_port is not None:
                check_port("127.0.0.1", plan.node_port, "GPU_NODE_PORT")
            os.environ.update(environment_of(plan))
            print("Preparing the database …", flush=True)
            words = prepare_installation()
            print("Starting. The first start takes some seconds.", flush=True)
            supervise(Console(plan, words), leash=leash)
    except (CannotRun, EnvError) as error:
        print(error, file=sys.stderr)
        return 2
    print("Stopped.", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
