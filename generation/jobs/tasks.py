"""The tasks of the worker, run by django-q2.

Short, by id, safe to repeat: the job table is the truth and a lost task is healed by the reconciler.
"""

import logging
import uuid
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.utils.translation import gettext_noop

from generation import media, nodes
from generation.jobs import enqueue, lifecycle, locks, scheduling, stored_files
from generation.jobs.node_health import endpoint_of
from generation.media.folders import work_folder
from generation.models import GenerationJob, JobAttempt

logger = logging.getLogger(__name__)

# Until a file that does not arrive is asked for again.
REPEAT_SECONDS = 2.0
DOWNLOAD_FAILED = gettext_noop(
    "Video generated but download failed. No credits were deducted. Please try again."
)


def dispatch() -> None:
    """Give queued jobs to nodes while these have free slots.

    The requests to the nodes are the reconciler's, which can wait for many at once: one that hangs holds up no other.
    """
    while attempts := scheduling.claim():
        for attempt in attempts:
            logger.info("job %s: attempt %s on %s", attempt.job_id.hex, attempt.pk.hex, attempt.node)


def store(attempt_id: str) -> None:
    """Fetch the finished file, check and mend it, store it with its poster, and charge for it.

    A fault of our own (a full disk, a storage that is away) is raised: the lease runs out and the task is
    repeated.
    """
    attempt = JobAttempt.objects.select_related("job", "node").filter(pk=attempt_id).first()
    token = uuid.uuid4()
    if attempt is None or attempt.job.state != GenerationJob.State.STORING:
        return
    if not locks.take(attempt_id=attempt.pk, token=token):
        return
    with locks.kept(attempt_id=attempt.pk, token=token), work_folder() as folder:
        raw, clip, poster = folder / "raw.mp4", folder / "clip.mp4", folder / "poster.jpg"
        try:
            facts = _fetch(attempt, raw, clip, poster)
        except nodes.TransientNodeError as error:
            if not _repeat_later(attempt, token, error):
                _nothing_to_store(attempt, token, error)
            return
        except (nodes.PermanentNodeError, media.UnplayableVideo) as error:
            _nothing_to_store(attempt, token, error)
            return
        files = stored_files.new_names(attempt.job_id)
        stored_files.announce(files)
        stored_files.store(clip, poster, files)
    if lifecycle.complete(attempt_id=attempt.pk, files=files, facts=facts):
        logger.info("job %s completed: %s", attempt.job_id.hex, files[0])
    else:
        logger.warning("job %s ended before its file was stored: the file is discarded", attempt.job_id.hex)
        stored_files.discard(files)


def remove_files() -> None:
    """Remove stored files that no job names: deleted videos, and what a killed worker left."""
    while stored_files.remove_due():
        pass


def _fetch(attempt: JobAttempt, raw: Path, clip: Path, poster: Path) -> media.VideoFacts:
    """Fetch and prepare the file; where it does not play, once more: an answer without a length may end early."""
    async_to_sync(_download)(attempt, raw)
    try:
        return media.prepare(raw, clip, poster)
    except media.UnplayableVideo:
        size = raw.stat().st_size
        async_to_sync(_download)(attempt, raw)
        if raw.stat().st_size == size:
            raise
        return media.prepare(raw, clip, poster)


async def _download(attempt: JobAttempt, destination: Path) -> None:
    remote = nodes.RemoteJob(
        state="completed", remote_id=attempt.remote_id or None, file_name=attempt.file_name or None
    )
    async with nodes.open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.download(
            remote, destination, max_bytes=settings.MAX_VIDEO_BYTES, timeout=settings.DOWNLOAD_TIMEOUT_SECONDS
        )


def _repeat_later(attempt: JobAttempt, token: uuid.UUID, error: nodes.TransientNodeError) -> bool:
    """Queue the task again behind others, while DOWNLOAD_TIMEOUT_SECONDS since the clip was made are not over.

    A node that hangs gets no further jobs meanwhile: their files would hang as well, and hold up those of other nodes.
    """
    lately = locks.until(-settings.DOWNLOAD_TIMEOUT_SECONDS)
    if not JobAttempt.objects.filter(pk=attempt.pk, heard_at__gt=lately).exists():
        return False
    logger.info("job %s: the file of %s does not arrive yet: %s", attempt.job_id.hex, attempt.node, error)
    if isinstance(error, nodes.NodeTimeout):
        lifecycle.note_silence(attempt_id=attempt.pk, token=token, seconds=0)
    enqueue.store(attempt_id=attempt.pk, pause=REPEAT_SECONDS)
    return True


def _nothing_to_store(attempt: JobAttempt, token: uuid.UUID, error: Exception) -> None:
    """Close an attempt without a playable file. Another one may do better, while there are any left."""
    logger.warning("job %s: nothing to store from %s: %s", attempt.job_id.hex, attempt.node, error)
    held: dict[str, Any] = {"attempt_id": attempt.pk, "token": token, "error": str(error)}
    if isinstance(error, nodes.ResultTooLarge):
        message = gettext_noop("The video is too large.")
        lifecycle.attempt_failed(code="result_too_large", message=message, **held)
    elif isinstance(error, nodes.NodeError) and not isinstance(error, nodes.NodeAnsweredNonsense):
        certain = isinstance(error, nodes.ResultElsewhere)
        lifecycle.attempt_lost(code="download_failed", message=DOWNLOAD_FAILED, certain=certain, **held)
    else:
        message = gettext_noop("The video could not be played.")
        lifecycle.attempt_lost(code="unplayable", message=message, **held)
