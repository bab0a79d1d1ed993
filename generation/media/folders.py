"""Atomic writes, and scratch folders under WORK_DIR.

A scratch folder that a killed process left is removed by the next process that needs a folder.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

# A folder gets its lock right after it is made; one that is younger than this may not have it yet.
NEW_SECONDS = 60.0


@contextmanager
def atomic_write(destination: Path) -> Iterator[Path]:
    """Yield an empty file next to `destination`; it takes that name when the block ends well, and else is removed.

    Raises OSError when the folder or the disk does not take it.
    """
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.", suffix=".part")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield an empty folder that is gone after the block, or soon after this process was killed."""
    settings.WORK_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep()
    folder = Path(tempfile.mkdtemp(dir=settings.WORK_DIR))
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Held while this process lives: another process that gets the lock knows that the owner is gone.
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def sweep() -> None:
    """Remove the folders whose owner is gone. Anything but a folder was not made here, and stays."""
    for folder in filter(Path.is_dir, settings.WORK_DIR.iterdir()):
        try:
            _remove_if_abandoned(folder)
        except FileNotFoundError:
            continue  # its owner, or another sweep, was as quick


def _remove_if_abandoned(folder: Path) -> None:
    if time.time() - folder.stat().st_mtime < NEW_SECONDS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        return
    finally:
        os.close(handle)
