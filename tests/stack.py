"""The whole platform for an end-to-end test: what `make run` starts, in a folder of the test's own, on free ports."""

from collections.abc import Mapping
from pathlib import Path

import psutil

from videoplatform.process import Instance

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
    else, since each takes two seconds of a core to start.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data_dir, {"WEB_PROCESSES": "1"} | dict(settings or {}))

    def pid_of(self, program: str) -> int:
        """The process that leads a program's group. Raises LookupError when it is down."""
        for process in psutil.Process(self.pid).children():
            if COMMANDS[program] in process.cmdline():
                return process.pid
        raise LookupError(f"{program} is not running")

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this stack, the database server included."""
        launcher = psutil.Process(self.pid)
        found = [launcher, *launcher.children(recursive=True)]
        server = self.data_dir / "postgres" / "postmaster.pid"
        if server.exists():
            found.append(psutil.Process(int(server.read_text().split()[0])))
        return found
