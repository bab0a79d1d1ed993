"""Every file in the storage has somebody who answers for it: a job that names it, or a row that says when it goes.

A name is written down before its file is. Whoever completes the job takes the row away in the same transaction, and
whoever deletes a video puts one back; so a worker that is killed at any moment leaves nothing that nobody would find.
"""

import logging
from collections.abc import Iterable

from django.db import transaction
from django.db.models.functions import Now

from generation import media
from generation.jobs import locks
from generation.models import UnclaimedFile

logger = logging.getLogger(__name__)

# Longer than any task that writes files may take, in seconds.
KEEP_SECONDS = 3600.0
# A storage that does not take the deletion is asked again this much later.
RETRY_SECONDS = 600.0
BATCH = 100


def announce(clip: media.StoredClip) -> None:
    """These files are going to be written. Commits before they are: call it outside of any transaction."""
    _write_down(_names(clip), seconds=KEEP_SECONDS)


def held(clip: media.StoredClip) -> bool:
    """Lock the rows of files that were written; False when they were removed meanwhile, because it took too long."""
    rows = UnclaimedFile.objects.select_for_update().filter(name__in=_names(clip))
    return len(rows) == len(_names(clip))


def claim(clip: media.StoredClip) -> None:
    """A job names them from now on. Call it in the transaction that makes it so."""
    _forget(_names(clip))


def let_go(clip: media.StoredClip) -> None:
    """No job names them any more. Call it in the transaction that makes it so."""
    _write_down(_names(clip), seconds=0)


def discard(clip: media.StoredClip) -> None:
    """Remove them now. What fails is tried again by `remove_due`."""
    let_go(clip)
    media.discard(clip)
    _forget(_names(clip))


def due() -> bool:
    """Files wait to be removed."""
    return UnclaimedFile.objects.filter(remove_after__lt=Now()).exists()


def remove_due() -> int:
    """Remove files whose time has come; how many there were. A storage that refuses one of them keeps no other."""
    removed = 0
    for name in _take_due():
        try:
            media.remove(name)
        except Exception:
            # Whatever the storage's own library raises; the row stays, and it is tried again.
            logger.exception("the file %s could not be removed", name)
            continue
        _forget([name])
        removed += 1
    return removed


@transaction.atomic
def _take_due() -> list[str]:
    """The next ones, put off for all others meanwhile."""
    waiting = UnclaimedFile.objects.filter(remove_after__lt=Now()).order_by("remove_after")
    names = list(waiting.select_for_update(skip_locked=True).values_list("name", flat=True)[:BATCH])
    UnclaimedFile.objects.filter(name__in=names).update(remove_after=locks.until(RETRY_SECONDS))
    return names


def _write_down(names: Iterable[str], *, seconds: float) -> None:
    UnclaimedFile.objects.bulk_create(
        [UnclaimedFile(name=name, remove_after=locks.until(seconds)) for name in names],
        update_conflicts=True,
        unique_fields=["name"],
        update_fields=["remove_after"],
    )


def _forget(names: list[str]) -> None:
    UnclaimedFile.objects.filter(name__in=names).delete()


def _names(clip: media.StoredClip) -> list[str]:
    return [name for name in (clip.video, clip.poster) if name]
