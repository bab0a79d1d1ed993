"""Processes that a test run left running, found by a variable in their environment or by the folder of their data."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tests.environment import RUN
from tests.processes import still_alive

PATIENCE_SECONDS = 30.0


def end(temporary: Path) -> list[str]:
    """Kill what is left of this run, with its files in `temporary`; return the command lines.

    Processes that are about to end by themselves get half a minute.
    """
    folders = [temporary]
    if "/" not in RUN:  # else the run that started this one uses it, too
        folders.append(Path(os.environ["DATA_DIR"]))
    ended = []
    for process in still_alive(list(_of_this_run(folders)), seconds=PATIENCE_SECONDS):
        with suppress(psutil.NoSuchProcess):
            ended.append(f"{process.pid} {' '.join(process.cmdline())}")
            process.kill()
    return ended


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
