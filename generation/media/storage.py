"""Keep finished clips in Django's default storage: a folder, or S3."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID, uuid4

from django.core.files import File
from django.core.files.storage import Storage, default_storage


def new_names(job_id: UUID) -> tuple[str, str]:
    """Name a clip of this job and its poster, from the job's id and chance.


    Each call makes other names, so an unwanted result can be removed without touching what is being played. (S3
    overwrites.)
    """
    stem = f"{job_id.hex[:2]}/{job_id.hex}-{uuid4().hex[:8]}"
    return f"videos/{stem}.mp4", f"posters/{stem}.jpg"


def store(video: Path, poster: Path, names: tuple[str, str], *, storage: Storage = default_storage) -> None:
    """Copy a clip and its poster into the storage; both are there when this returns, or neither."""
    _save(video, names[0], storage)
    try:
        _save(poster, names[1], storage)
    except BaseException:
        storage.delete(names[0])
        raise


def remove(name: str, *, storage: Storage = default_storage) -> None:
    """Delete a file; it is fine when it is gone already."""
    storage.delete(name)


def _save(path: Path, name: str, storage: Storage) -> None:
    with path.open("rb") as file:
        saved = storage.save(name, File(file, name=path.name))
    if saved != name:
        storage.delete(saved)
        raise FileExistsError(f"There is a file {name} already.")
    # Credits are captured next, in a database that survives a power cut; so must the clip, and the folders it is in.
    try:
        path = Path(storage.path(name))
    except NotImplementedError:  # not on this machine's disk
        return
    for place in (path, *path.parents[: name.count("/") + 1]):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
