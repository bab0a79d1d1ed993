"""Files in Django's default storage (a folder, or S3): each is named by a job, or by a row that says when it goes.

A name is written down before its file is. The completion of the job takes the row away in the same transaction, and
the deletion of a video puts one back; so a worker that is killed at any moment leaves no file behind for good.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models.functions import Now

from generation.jobs import locks
from generation.models import UnclaimedFile

logger = logging.getLogger(__name__)

# Longer than any task that writes files may take, in seconds.
KEEP_SECONDS = 3600.0
# A storage that does not take the deletion is asked again this much later.
RETRY_SECONDS = 600.0
BATCH = 100


def new_names(job_id: UUID) -> tuple[str, str]:
    """Name a clip of this job and its poster, from the job's id and chance.

    Each call makes other names, so an unwanted result can be removed without touching what is being played. (S3
    overwrites.)
    """
    stem = f"{job_id.hex[:2]}/{job_id.hex}-{uuid4().hex[:8]}"
    return f"videos/{stem}.mp4", f"posters/{stem}.jpg"


def announce(names: Iterable[str]) -> None:
    """Write down files that are about to be written. Commits before they are: call it outside of any transaction."""
    let_go(names, seconds=KEEP_SECONDS)


def store(video: Path, poster: Path, names: tuple[str, str]) -> None:
    """Copy a clip and its poster into the storage; both are there when this returns, or neither."""
    _save(video, names[0])
    try:
        _save(poster, names[1])
    except BaseException:
        default_storage.delete(names[0])
        raise


def held(names: Sequence[str]) -> bool:
    """Lock the rows of files that were written; False when they were removed meanwhile, because it took too long."""
    rows = UnclaimedFile.objects.select_for_update().filter(name__in=names).order_by("pk")
    return len(rows) == len(names)


def claim(names: Iterable[str]) -> None:
    """Forget files that a job names from now on. Call it in the transaction that makes it so."""
    UnclaimedFile.objects.filter(name__in=names).delete()


def let_go(names: Iterable[str], *, seconds: float = 0) -> None:
    """Have files removed that no job names any more. Call it in the transaction that makes it so."""
    UnclaimedFile.objects.bulk_create(
        [UnclaimedFile(name=name, remove_after=locks.until(seconds)) for name in names],
        update_conflicts=True,
        unique_fields=["name"],
        update_fields=["remove_after"],
    )


def discard(names: Sequence[str]) -> None:
    """Remove files now. What fails is tried again by `remove_due`."""
    let_go(names)
    for name in names:
        default_storage.delete(name)
    claim(names)


def due() -> bool:
    return UnclaimedFile.objects.filter(remove_after__lt=Now()).exists()


def remove_due() -> int:
    """Remove files whose time has come; returns how many. A storage that refuses one of them keeps no other."""
    removed = 0
    for name in _take_due():
        try:
            default_storage.delete(name)
        except Exception:
            # Anything that the storage's own library raises; the row stays, and it is tried again.
            logger.exception("the file %s could not be removed", name)
            continue
        claim([name])
        removed += 1
    return removed


@transaction.atomic
def _take_due() -> list[str]:
    """Take the next ones, put off for all others meanwhile."""
    waiting = UnclaimedFile.objects.filter(remove_after__lt=Now()).order_by("remove_after")
    names = list(waiting.select_for_update(skip_locked=True).values_list("name", flat=True)[:BATCH])
    UnclaimedFile.objects.filter(name__in=names).update(remove_after=locks.until(RETRY_SECONDS))
    return names


def _save(path: Path, name: str) -> None:
    with path.open("rb") as file:
        saved = default_storage.save(name, File(file, name=path.name))
    if saved != name:
        default_storage.delete(saved)
        raise FileExistsError(f"There is a file {name} already.")
    # Credits are captured next, in a database that survives a power cut; so must the clip, and the folders it is in.
    try:
        path = Path(default_storage.path(name))
    except NotImplementedError:  # not on this machine's disk
        return
    for place in (path, *path.parents[: name.count("/") + 1]):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
