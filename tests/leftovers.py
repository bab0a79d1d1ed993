"""What a test run started and left running: found by a variable in its environment, or by the folder of its data."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tests.environment import RUN

PATIENCE_SECONDS = 30.0


def leftovers(temporary: Path) -> list[psutil.Process]:
    """Processes of this run that go on, `temporary` being where its files are; waits for those about to end."""
    folders = [temporary]
    if "/" not in RUN:  # else the run that started this one uses it, too
        folders.append(Path(os.environ["DATA_DIR"]))
    _, alive = psutil.wait_procs(list(_of_this_run(folders)), timeout=PATIENCE_SECONDS)
    return alive


def _of_this_run(folders: list[Path]) -> Iterator[psutil.Process]:
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            run = process.environ().get("TEST_RUN", "")
            # A database server gets a clean environment.
            served = any(
                Path(word).is_relative_to(folder) for word in process.cmdline() for folder in folders
            )
            if process.pid not in ourselves and (served or run == RUN or run.startswith(f"{RUN}/")):
                yield process


def end(processes: list[psutil.Process]) -> None:
    """Name them on standard error, and kill them."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            print(f"left running: {process.pid} {' '.join(process.cmdline())}", file=sys.stderr)
            process.kill()
