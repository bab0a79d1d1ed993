"""Keep finished clips in Django's default storage: a folder, or S3."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from django.core.files import File
from django.core.files.storage import Storage, default_storage


@dataclass(frozen=True)
class StoredClip:
    """Names in the storage, as models keep them."""

    video: str
    poster: str


def store(video: Path, poster: Path, job_id: UUID, *, storage: Storage = default_storage) -> StoredClip:
    """Copy a clip and its poster into the storage; both are there when this returns, or neither.

    The names come from the job's id and chance. A second call for the same job so has names of its own, and
    whoever finds its result unwanted can `discard` it without touching what is being played. (S3 overwrites.)
    """
    stem = f"{job_id.hex[:2]}/{job_id.hex}-{uuid4().hex[:8]}"
    video_name = _save(video, f"videos/{stem}.mp4", storage)
    try:
        return StoredClip(video=video_name, poster=_save(poster, f"posters/{stem}.jpg", storage))
    except BaseException:
        storage.delete(video_name)
        raise


def discard(clip: StoredClip, *, storage: Storage = default_storage) -> None:
    """Delete both files; it is fine when they are gone already."""
    for name in (clip.video, clip.poster):
        if name:
            storage.delete(name)


def _save(path: Path, name: str, storage: Storage) -> str:
    with path.open("rb") as file:
        saved = storage.save(name, File(file, name=path.name))
    _flush_to_disk(saved, storage)
    return saved


def _flush_to_disk(name: str, storage: Storage) -> None:
    """Credits are captured next, in a database that survives a power cut; so must the clip."""
    try:
        path = storage.path(name)
    except NotImplementedError:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
