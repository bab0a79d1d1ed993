"""Files in Django's default storage (a folder, or S3): each is named by a job, or by a row that says when it goes.

Such a row may also name what a GPU node keeps of an attempt at a job, which goes together with the files.

A name is written down before its file is. The completion of the job takes the row away in the same transaction, and
the deletion of a video puts one back; so a worker that is killed at any moment leaves no file behind for good.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from asgiref.sync import async_to_sync
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models.functions import Now

from generation.jobs import locks
from generation.jobs.node_health import endpoint_of
from generation.models import GenerationJob, JobAttempt, UnclaimedFile
from generation.nodes import NodeAnsweredNonsense, NodeError, RemoteJobLost, TransientNodeError, open_client

logger = logging.getLogger(__name__)

# Longer than any task that writes files may take, in seconds.
KEEP_SECONDS = 3600.0
# A storage or a node that does not take the deletion is asked again this much later, a node for a week at most.
RETRY_SECONDS = 600.0
ASK_NODE_SECONDS = 7 * 86400.0
BATCH = 100
# Before a job's and an attempt's id: what the attempt's node keeps of it.
ON_NODE = "node/"


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


def all_of(job: GenerationJob) -> list[str]:
    """Name the files of a job, and what nodes keep of it."""
    attempts = [f"{ON_NODE}{job.pk.hex}/{pk}" for pk in job.attempts.values_list("pk", flat=True)]
    return [name for name in (job.video.name, job.poster.name) if name] + attempts


def discard(names: Sequence[str]) -> None:
    """Remove files now. What fails is tried again by `remove_due`."""
    let_go(names)
    for name in names:
        default_storage.delete(name)
    claim(names)


def due() -> bool:
    return UnclaimedFile.objects.filter(remove_after__lt=Now()).exists()


def remove_due() -> int:
    """Remove files whose time has come; returns how many. A storage or a node that refuses one keeps no other."""
    removed, silent = 0, set[int]()
    for name in _take_due():
        try:
            if name.startswith(ON_NODE):
                _remove_on_node(name.rpartition("/")[2], silent)
            else:
                default_storage.delete(name)
        except NodeError as error:
            logger.warning("%s is not removed yet: %s", name, error)
        except Exception:
            # Anything that the storage's own library raises; the row stays, and it is tried again.
            logger.exception("the file %s could not be removed", name)
        else:
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


def _remove_on_node(attempt_id: str, silent: set[int]) -> None:
    """Have a node delete what it keeps of an attempt; NodeError while it is to be asked again.

    silent: ids of nodes that are left alone for now; one that does not answer is added.
    """
    attempts = JobAttempt.objects.filter(pk=attempt_id)
    attempt = attempts.select_related("node").get()
    if attempt.state == JobAttempt.State.OPEN or attempt.node_id in silent:
        raise TransientNodeError("The attempt is open, or its node was silent just now.")
    if not attempt.remote_id:
        return
    try:
        async_to_sync(_forget)(attempt)
    except (RemoteJobLost, NodeAnsweredNonsense) as error:
        logger.info("job %s: %s deletes nothing: %s", attempt.job_id.hex, attempt.node, error)
    except NodeError as error:
        if isinstance(error, TransientNodeError):
            silent.add(attempt.node_id)
        if attempts.filter(job__deleted_at__gt=locks.until(-ASK_NODE_SECONDS)).exists():
            raise
        logger.warning("job %s: %s keeps what it has of it: %s", attempt.job_id.hex, attempt.node, error)


async def _forget(attempt: JobAttempt) -> None:
    async with open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.forget(attempt.remote_id)


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
