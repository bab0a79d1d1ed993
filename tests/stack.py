"""The whole platform for an end-to-end test: what `make run` starts, in a folder of the test's own, on free ports."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from tests import preforked
from tests.environment import RUN
from tests.fork_server import fork_server
from videoplatform.embedded_postgres import NAME, connection_settings
from videoplatform.process import Instance, InstanceFailed

# A word of the command line by which each program of supervisord.conf is known.
COMMANDS = {
    "postgres": "videoplatform.embedded_postgres",
    "web": "gunicorn",
    "worker": "run_worker",
    "reconciler": "run_reconciler",
    "gpu_node": "gpu_node",
    "bot": "run_bot",
}


class Stack(Instance):
    """`with Stack(tmp_path, {"VIDEO_COOLDOWN_SECONDS": "0"}) as stack:` then stack.url, .node_url, .manage(…).

    Start it once for a module where that will do: it takes some seconds. One web process where `settings` say nothing
    else, since each takes two seconds of a core to start. Its database is there already, migrated and empty, and its
    GPU worker is forked from one that has imported torch. `bare`: all starts as it does for a person.
    """

    def __init__(
        self, data_dir: Path, settings: Mapping[str, str] | None = None, *, bare: bool = False
    ) -> None:
        # Whole test suites sign up from one address.
        ours = {"WEB_PROCESSES": "1", "SIGNUP_GRANTS_PER_NETWORK": "0"} | (
            {} if bare else preforked.worker_settings()
        )
        super().__init__(data_dir, ours | dict(settings or {}))
        self._bare = bare

    def start(self) -> Self:
        if not self._bare and not (self.data_dir / "postgres").exists():
            copy_database(self.data_dir)
        return super().start()

    def manage(self, *arguments: str) -> str:
        """Do what `Instance.manage` does, without starting Python for it."""
        result = self.command(*arguments)
        if result.returncode != 0:
            raise InstanceFailed(f"manage.py {' '.join(arguments)}: {result.stderr or result.stdout}")
        return result.stdout

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `manage.py ARGUMENTS`, however it ends."""
        return fork_server.run(*arguments, environment=self.environment)

    def connect(self) -> "psycopg.Connection[Any]":
        at = connection_settings(self.data_dir, role=NAME)
        place = {
            "host": at["HOST"],
            "port": at["PORT"],
            "user": at["USER"],
            "dbname": at["NAME"],
            **at["OPTIONS"],
        }
        return psycopg.connect(**place, autocommit=True, connect_timeout=5)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connect() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def live_jobs(self) -> int:
        return int(self.sql("SELECT count(*) FROM generation_generationjob WHERE finished_at IS NULL")[0][0])

    def pid_of(self, program: str) -> int:
        """The process that leads a program's group. Raises LookupError when it is down."""
        for process in psutil.Process(self.pid).children():
            if COMMANDS[program] in process.cmdline():
                return process.pid
        raise LookupError(f"{program} is not running")

    @staticmethod
    def family_of(leader: psutil.Process, *, recursive: bool = True) -> list[psutil.Process]:
        """Return the processes below this one, without the database server: the program that came first started it, and
        it stays while any program uses it.
        """
        family = []
        for process in leader.children(recursive=recursive):
            with suppress(psutil.NoSuchProcess):
                if not process.name().startswith("postgres"):
                    family.append(process)
        return family

    @contextmanager
    def node_held_up(self) -> Iterator[None]:
        """Suspend the process that makes the clips, so that a busy machine cannot be too late for what comes."""
        worker = self.node_worker()
        worker.suspend()
        try:
            yield
        finally:
            worker.resume()

    def node_worker(self) -> psutil.Process:
        """Return the process that has the model. Raises IndexError when there is none."""
        started = psutil.Process(self.pid_of("gpu_node")).children()[0]
        return psutil.Process(preforked.forked_pid(started.pid) or started.pid)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this stack, the database server included."""
        launcher = psutil.Process(self.pid)
        found = [launcher, *launcher.children(recursive=True)]
        server = self.data_dir / "postgres" / "postmaster.pid"
        if server.exists():
            found.append(psutil.Process(int(server.read_text().split()[0])))
        return found


def copy_database(data_dir: Path) -> None:
    """Put the files of a migrated database server into a new DATA_DIR. The first call of a run makes them."""
    made = Path(os.environ["DATA_DIR"]) / "migrated"
    made.mkdir(parents=True, exist_ok=True)
    with (made / "run").open("a+") as run:
        fcntl.flock(run, fcntl.LOCK_EX)
        run.seek(0)
        if run.read() != RUN.partition("/")[0]:
            shutil.rmtree(made / "data", ignore_errors=True)
            (made / "data").mkdir()
            Stack(made / "data").manage("migrate", "--verbosity", "0")
            run.truncate(0)
            run.write(RUN.partition("/")[0])
    data_dir.mkdir(parents=True, exist_ok=True)
    # With its owner: PostgreSQL does not run as root.
    subprocess.run(["cp", "-a", str(made / "data" / "postgres"), str(data_dir / "postgres")], check=True)
