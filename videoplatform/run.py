"""`make run`: every process of the platform on this machine, supervised in the foreground until Ctrl-C.

Reads `.env`, chooses the programs of supervisord.conf and their environment, prepares the database, then supervises.
One process is launcher, supervisor and console: it restarts what dies (and first ends what is left of its process
group), shows the output with a prefix, and prints the address once the site answers.

Ends with 2 and a sentence when it cannot start: another one runs in this DATA_DIR, a port is taken, or a setting cannot
be read.
"""

import argparse
import fcntl
import http.client
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from environs import Env, EnvError, validate
from supervisor import events
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import ServerOptions
from supervisor.supervisord import Supervisor

from videoplatform.bootstrap import write_secrets
from videoplatform.embedded_postgres import has_account
from videoplatform.utf8 import use_utf8

BASE_DIR = Path(__file__).resolve().parent.parent
PORTS = validate.Range(min=1, max=65535)
# In the environment of every process started here, so that a later start finds what an earlier one left behind.
MARK = "VIDEOPLATFORM_RUN"
ENDED, NOT_STARTED = "ended unexpectedly; it is started again", "did not start; trying again"
GIVEN_UP = "is not started again: mend what it says above, and start anew. Everything else goes on"


class CannotRun(Exception):
    """`make run` cannot start. The message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """The addresses of the platform, and the environment of its programs, beyond the settings made by hand."""

    data_dir: Path
    host: str
    port: int
    node_port: int | None  # None: the GPU node runs elsewhere
    node_url: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        shown = "localhost" if self.host in {"127.0.0.1", "0.0.0.0", "::", "::1"} else self.host  # noqa: S104
        return f"http://{shown}:{self.port}"


def make_plan(env: Env) -> Plan:
    """Read the plan from the environment; docs/configuration.md describes the names. Raises EnvError."""
    data_dir = env.path("DATA_DIR", BASE_DIR / ".data").resolve()
    host, port = env.str("WEB_HOST", "127.0.0.1"), env.int("PORT", 8000, validate=PORTS)
    bind_host = f"[{host}]" if ":" in host else host
    node_port = env.int("GPU_NODE_PORT", 8081, validate=PORTS)
    node_url = env.str("VIDEO_API_URL", "") or f"http://127.0.0.1:{node_port}"
    address = urlsplit(node_url)
    local = address.hostname in {"127.0.0.1", "localhost", "::1"} and address.port == node_port
    logs = str(data_dir / "logs")
    chosen = {
        "DATA_DIR": str(data_dir),
        "PORT": str(port),
        "VIDEO_API_URL": node_url,
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # whatever the locale: files, logs and messages are in UTF-8
        "VIDEOPLATFORM_PYTHON": shlex.quote(sys.executable),
        "VIDEOPLATFORM_DATA": shlex.quote(str(data_dir)),
        "VIDEOPLATFORM_LOGS": logs.replace("%", "%%"),  # supervisor expands this one twice
        "VIDEOPLATFORM_BIND": f"{bind_host}:{port}",
        "VIDEOPLATFORM_POSTGRES": str(not env.str("DATABASE_URL", "")).lower(),
        "VIDEOPLATFORM_GPU_NODE": str(local).lower(),
        "VIDEOPLATFORM_BOT": str(bool(env.str("TELEGRAM_BOT_TOKEN", ""))).lower(),
        MARK: str(data_dir),
    }
    defaults = {
        "WEB_PROCESSES": "2",
        "GPU_NODE_PORT": str(node_port),
        "GPU_NODE_MODEL": "tiny",
        "GPU_NODE_SAVE_DIR": str(data_dir / "gpu_node" / "videos"),
        "GPU_NODE_CACHE_DIR": str(BASE_DIR / ".data" / "models"),
    }
    if not has_account():  # torch asks for a name, and takes it from here
        defaults["USER"] = f"uid-{os.geteuid()}"
    environment = chosen | {name: value for name, value in defaults.items() if not os.environ.get(name)}
    return Plan(data_dir, host, port, node_port if local else None, node_url, environment)


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
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # gone by now, or another user's
            if process.pid != os.getpid() and process.environ().get(MARK) == str(data_dir):
                left.append(process)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=10)
    for process in stubborn:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=10)


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
    """Run `bootstrap` in a process of its own. Returns its message: the first staff user's password, once."""
    command = [sys.executable, "-m", "videoplatform.bootstrap"]
    result = subprocess.run(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise CannotRun(f"{result.stdout}The database could not be prepared; see above.")
    return result.stdout


# --- While it runs ----------------------------------------------------------------------------------------------------
class PlatformSupervisor(Supervisor):
    """supervisord that is also the console, and that ends the rest of a process group when its leader dies.

    message: printed once the site answers. leash: stop when standard input ends, too.
    """

    def __init__(self, options: ServerOptions, plan: Plan, message: str, *, leash: bool) -> None:
        super().__init__(options)
        self._plan, self._message, self._leash = plan, message, leash
        self._greeted = False
        self._partial_lines: defaultdict[str, bytes] = defaultdict(bytes)

    def runforever(self) -> None:
        """Subscribe to what happens. Called by supervisor when its configuration is read."""
        events.subscribe(events.ProcessLogStdoutEvent, self._on_output)
        events.subscribe(events.ProcessStateExitedEvent, self._on_exit)
        events.subscribe(events.ProcessStateStoppedEvent, self._on_exit)
        events.subscribe(events.ProcessStateBackoffEvent, self._on_failed_start)
        super().runforever()

    def tick(self, now: float | None = None) -> None:
        """Greet, and look at the leash. Called by supervisor about once a second."""
        super().tick(now)
        if not self._greeted and (healthz_status(self._plan.host, self._plan.port) or 500) < 500:
            self._greeted = True
            self._greet()
        if self._leash and select.select([sys.stdin], [], [], 0)[0] and not os.read(sys.stdin.fileno(), 1024):
            self._leash = False
            os.kill(os.getpid(), signal.SIGTERM)

    def _greet(self) -> None:
        plan = self._plan
        is_tiny = os.environ["GPU_NODE_MODEL"] == "tiny" and plan.node_port
        about_node = " (the tiny demonstration model: docs/embedded-model.md)" if is_tiny else ""
        staff = (
            self._message.strip()
            or "Staff sign in as before; a new password: .venv/bin/python manage.py changepassword admin"
        )
        _print(
            f"\n  Ready: {plan.url}   (staff: {plan.url}/admin/, API: {plan.url}/v1/docs)\n"
            f"  {staff}\n  GPU node: {plan.node_url}{about_node}\n  Stop with Ctrl-C.\n"
        )

    def _on_output(self, event: events.ProcessLogEvent) -> None:
        name = event.process.config.name
        *lines, self._partial_lines[name] = (self._partial_lines[name] + event.data).split(b"\n")
        for line in lines:
            _print(f"{name:>10} | {line.decode(errors='replace').rstrip()}")

    def _on_exit(self, event: events.ProcessStateEvent) -> None:
        process = event.process
        with suppress(ProcessLookupError):  # the usual case: nothing is left of the group
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(event, events.ProcessStateExitedEvent):
            _print(f"{process.config.name:>10} | {GIVEN_UP if event.expected else ENDED}")

    def _on_failed_start(self, event: events.ProcessStateEvent) -> None:
        _print(f"{event.process.config.name:>10} | {NOT_STARTED}")


def _print(text: str) -> None:
    """Print at once, also into a pipe; a terminal that is gone is no reason to stop."""
    with suppress(OSError):
        print(text, flush=True)


def healthz_status(host: str, port: int, *, timeout: float = 1.0) -> int | None:
    """Return the status of `/healthz`, or None without an answer. 400: localhost is not in ALLOWED_HOSTS."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    # The plainest client: during the start the machine is busy, and this is called again and again.
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/healthz", headers={"Host": f"localhost:{port}"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def supervise(plan: Plan, message: str, *, leash: bool) -> None:
    """Run the programs of supervisord.conf until SIGINT, SIGTERM, or SIGHUP (the terminal was closed).

    leash: also stop when standard input ends, which shows that the process that started this is gone.
    """
    os.chdir(BASE_DIR)
    options = ServerOptions()
    as_root = ["-u", "root"] if os.geteuid() == 0 else []  # else it complains
    options.realize(["-c", str(BASE_DIR / "supervisord.conf"), *as_root], doc=__doc__)
    options.first, options.test = True, False
    with suppress(asyncore.ExitNow):  # supervisor raises it when everything has stopped
        PlatformSupervisor(options, plan, message, leash=leash).main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Start, supervise, stop."""
    use_utf8(["-m", "videoplatform.run", *(sys.argv[1:] if arguments is None else arguments)])
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
            os.environ.update(plan.environment)
            print("Preparing the database …", flush=True)
            message = prepare_installation()
            print("Starting. The first start takes some seconds.", flush=True)
            supervise(plan, message, leash=leash)
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
