"""Processes forked from one that has imported torch, diffusers and transformers, which would take each seven seconds.

`forked_command("gpu_node.worker")` is a command line that does what `python -m gpu_node.worker` does, with the same
arguments, environment, folder, umask and standard streams, but in a process forked from a server that all test
processes of a run share. `worker_settings()` is the node's setting that starts its worker so; the node within a whole
platform reads it too. It stands in for the real command:

- it waits for the forked process and ends as that did, by exit status or by signal;
- when it is killed, so is the forked process; when the server dies, so are all of them;
- `forked_pid(pid of the command)` is the process that does the work.

Not the same: /proc/PID/environ and cmdline show the server's, and what a library reads from the environment at import
was read by the server. Tests of those, and of the way in which the product starts its worker, use the real command.

The server is started at first use and ends when the last test process that used it has ended or called `release`.
Linux only (`AVAILABLE`). PREFORKED_MODULES names other modules to import.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

AVAILABLE = sys.platform == "linux"
REPOSITORY = Path(__file__).resolve().parent.parent
# Not gpu_node.worker itself: it is run as __main__, like any program.
PRELOADED = "gpu_node.engine.pipeline gpu_node.video gpu_node.ipc"
START_SECONDS = 120.0
REQUEST_SECONDS = 5.0
PR_SET_PDEATHSIG = 1

_held: list[socket.socket] = []  # this process's connection to the server


def worker_settings(module: str = "gpu_node.worker") -> dict[str, str]:
    """Return the node's setting by which its worker is forked; nothing where that does not work."""
    return {"GPU_NODE_WORKER_COMMAND": shlex.join(forked_command(module))} if AVAILABLE else {}


def forked_command(module: str) -> list[str]:
    """Return a stand-in for `python -m MODULE`, to which arguments may be added; starts the server if there is none."""
    if not AVAILABLE:
        return [sys.executable, "-m", module]
    return [sys.executable, "-I", "-S", __file__, str(_hold_server()), module]


def forked_pid(pid: int) -> int | None:
    """Return the process that was forked for the command with this process id; None while there is none."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            if comm.read_text() == f"for-{pid}\n":
                return int(comm.parent.name)
    return None


def _hold_server() -> Path:
    """Keep this run's server alive for as long as this process lives; return its socket."""
    run = os.environ.get("TEST_RUN") or os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    name = f"preforked-{os.getuid()}-{run.replace('/', '-')[:30]}"
    path = Path(tempfile.gettempdir()) / name / "socket"
    if _held:
        return path
    with _locked(path.parent):
        connection, server = _connect(path), None
        deadline = time.monotonic() + START_SECONDS
        while connection is None:
            server = server or _start_server(path)
            in_time = server.poll() is None and time.monotonic() < deadline
            assert in_time, path.with_name("log").read_text()
            time.sleep(0.02)
            connection = _connect(path)
        connection.sendall(struct.pack("!I", 0))  # no request
        _held.append(connection)
    return path


def let_go() -> None:
    """Hold the server no longer: it ends when no other process does."""
    while _held:
        _held.pop().close()


@contextlib.contextmanager
def _locked(folder: Path):
    """Hold the lock of this run's folder, and have the folder: a server that ends takes it away."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:
                yield
                return


def _connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def _start_server(path: Path) -> "subprocess.Popen[bytes]":
    path.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPU_NODE_", "VIDEO_"))}
    with path.with_name("log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.preforked", str(path)],
            cwd=REPOSITORY,
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},  # or numpy starts a thread, and none survives a fork
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, and the server ends after them
        )


def stand_in(path: str, module: str, arguments: list[str]) -> None:
    """Have the server fork a process with this one's streams, wait for it, and end as it did."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # as the worker does, which ends when its input does
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    about = {"pid": os.getpid(), "module": module, "arguments": arguments, "folder": str(Path.cwd())}
    umask = os.umask(0o077)
    os.umask(umask)
    request = json.dumps(about | {"environment": dict(os.environ), "umask": umask}).encode()
    socket.send_fds(connection, [struct.pack("!I", len(request))], [0, 1, 2])
    connection.sendall(request)
    for stream in (0, 1):  # the forked process alone has them now
        os.close(stream)
    answer = connection.recv(4)
    status = os.waitstatus_to_exitcode(struct.unpack("!i", answer)[0]) if answer else 1
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


class Server:
    """The process that has imported everything: forks one process for each request, and ends with its last holder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._holders: set[socket.socket] = set()
        self._children: dict[socket.socket, int] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                key.data(key.fileobj)
            if not self._holders:
                with _locked(self._path.parent):
                    if not self._selector.select(0):  # no new holder is at the door
                        shutil.rmtree(self._path.parent)
                        return  # and the kernel ends the children

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(REQUEST_SECONDS)
        try:
            head, streams, _, _ = socket.recv_fds(connection, 4, 3)
            (size,) = struct.unpack("!I", head)
            request = connection.recv(size, socket.MSG_WAITALL) if size else b""
        except (OSError, struct.error):
            connection.close()  # the command was killed or stopped before it had said what it wants
            return
        connection.settimeout(None)
        if not size:
            self._holders.add(connection)
            self._selector.register(connection, selectors.EVENT_READ, self._on_holder_gone)
            return
        if len(request) < size:
            for stream in streams:
                os.close(stream)
            connection.close()
            return
        child = self._fork(json.loads(request), streams)
        self._children[connection] = child
        self._selector.register(connection, selectors.EVENT_READ, self._on_command_gone)
        self._selector.register(
            os.pidfd_open(child), selectors.EVENT_READ, lambda fd: self._on_end(fd, connection)
        )

    def _on_holder_gone(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._holders.remove(connection)
        connection.close()

    def _on_command_gone(self, connection: socket.socket) -> None:
        if connection in self._children:  # else its process has ended in the same moment
            self._selector.unregister(connection)
            os.kill(self._children[connection], signal.SIGKILL)

    def _on_end(self, pidfd: int, connection: socket.socket) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self._children.pop(connection), 0)
        with contextlib.suppress(KeyError):  # the command is gone already
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(struct.pack("!i", status))
        connection.close()

    def _fork(self, request: dict, streams: list[int]) -> int:
        server = os.getpid()
        child = os.fork()
        if not child:
            status = 1
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == server:
                    self._close()
                    status = _run(request, streams)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        for stream in streams:
            os.close(stream)
        return child

    def _close(self) -> None:
        """In a forked process: let go of what is the server's."""
        self._selector.close()
        for connection in (self._listener, *self._holders, *self._children):
            connection.close()


def _run(request: dict, streams: list[int]) -> int:
    """Be the command that was asked for; return its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    Path("/proc/self/comm").write_text(f"for-{request['pid']}")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    sys.path[:0] = [request["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [request["module"], *request["arguments"]]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    for module in os.environ.get("PREFORKED_MODULES", PRELOADED).split():
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread would not survive a fork"
    gc.collect()
    gc.freeze()  # so that a forked process's collector does not touch, and copy, all of the memory
    Server(Path(sys.argv[1])).serve()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stand_in(sys.argv[1], sys.argv[2], sys.argv[3:])
    main()
