"""The life of a job. Each transition is one conditional UPDATE, fenced by the attempt where one is open, in
one transaction with its credit move and the signal that makes its deliveries. A transition that finds no
row has lost a race: it changes nothing and says so.
"""

import logging
import uuid
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Coalesce, Now
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.models import CreditTransaction, User
from generation.errors import (
    BeingStored,
    CannotCancel,
    CannotDelete,
)
from generation.jobs import enqueue, events, locks, node_health, stored_files
from generation.jobs.submission import submit as submit  # where a life begins
from generation.media import StoredClip
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.signals import job_finished

logger = logging.getLogger(__name__)
State = GenerationJob.State

# Stored in English, translated where they are shown.
COMPLETED = gettext_noop("Video completed")
FAILED = gettext_noop("Video failed")
CANCELED = gettext_noop("Canceled")
NODE_LOST = gettext_noop("The GPU node could not be reached or stopped answering.")
# As JOB_DEADLINE_SECONDS and FIELD_NODE_TIMEOUT_SECONDS come; with other values it is told in English.
gettext_noop("Video generation timed out (>30 min)")
gettext_noop("Video generation timed out (>90s)")


@dataclass(frozen=True)
class StoredVideo:
    """A clip that is safely in storage: names there, pixels, milliseconds, bytes."""

    video: str
    poster: str
    width: int
    height: int
    frames: int
    duration_ms: int
    size_bytes: int

    @property
    def files(self) -> StoredClip:
        return StoredClip(video=self.video, poster=self.poster)


# --- While it runs: every function is fenced by the attempt and its lease ---------------------------------------------


@transaction.atomic
def attempt_posted(
    *, attempt_id: uuid.UUID, token: uuid.UUID, remote_id: str, hand_over: bool = False
) -> bool:
    """The node took it.

    With `hand_over` the lease is dropped, and the event tells a reconciler to follow it from here.
    """
    values: dict[str, object] = {"remote_id": remote_id, "posted_at": Now(), **_heard()}
    if hand_over:
        values["lease_expires_at"] = Now()
    if not locks.held(attempt_id=attempt_id, token=token).update(**values):
        return False
    events.publish(GenerationJob.objects.get(attempts=attempt_id))
    return True


def request_sent(*, attempt_id: uuid.UUID, token: uuid.UUID) -> bool:
    """The one long request to a field node goes out now; whoever finds this set later cannot re-attach to
    it.
    """
    return bool(locks.held(attempt_id=attempt_id, token=token).filter(posted_at=None).update(posted_at=Now()))


@transaction.atomic
def record_progress(*, attempt_id: uuid.UUID, token: uuid.UUID, step: int) -> bool:
    """The node is at this denoising step; False when the lease is lost and the caller must stop."""
    if not locks.held(attempt_id=attempt_id, token=token).update(step=step, **_heard()):
        return False
    moved = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.RUNNING).exclude(step=step)
    if moved.update(step=step):
        events.publish(GenerationJob.objects.get(current_attempt=attempt_id))
    return True


def note_silence(*, attempt_id: uuid.UUID, token: uuid.UUID, seconds: float) -> float | None:
    """A question to the node went unanswered for so many seconds. Returns how long it has been silent by now, in
    seconds; None when the lease is lost.

    Any answer ends the silence. It is kept in the row, so a reconciler that is started anew does not forget it.
    """
    attempt = locks.held(attempt_id=attempt_id, token=token)
    attempt.update(silent_since=Coalesce("silent_since", locks.until(-seconds)))
    silence = attempt.annotate(silence=Now() - F("silent_since")).values_list("silence", flat=True).first()
    return None if silence is None else float(silence.total_seconds())


@transaction.atomic
def begin_storing(
    *,
    attempt_id: uuid.UUID,
    token: uuid.UUID,
    file_name: str = "",
    generation_ms: int | None = None,
    profile: str = "",
) -> bool:
    """The node has made the file: fetch it. The node's slot is free from here on."""
    if not locks.held(attempt_id=attempt_id, token=token).update(
        file_name=file_name, generation_ms=generation_ms, profile=profile, **_heard()
    ):
        return False
    running = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.RUNNING)
    if not running.update(state=State.STORING, step=F("num_inference_steps"), generation_ms=generation_ms):
        # Canceled or past its deadline meanwhile: the late result is discarded and never charged.
        held = locks.held(attempt_id=attempt_id, token=token)
        _close(held, JobAttempt.State.CANCELED, error="finished after the job had ended; discarded")
        enqueue.dispatch()
        return False
    events.publish(GenerationJob.objects.get(current_attempt=attempt_id))
    enqueue.store(attempt_id=attempt_id)
    enqueue.dispatch()
    return True


@transaction.atomic
def complete(*, attempt_id: uuid.UUID, stored: StoredVideo) -> bool:
    """The file is stored: charge.

    False when the job ended meanwhile: the caller removes the file, nothing is charged. The same when the files,
    which were announced before they were written, are not waiting to be claimed any more.
    """
    node_health.count_success(attempt_id=attempt_id)
    storing = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.STORING)
    locks.lock_jobs(storing)
    if not stored_files.held(stored.files):
        return False
    job = _end(
        storing,
        state=State.COMPLETED,
        video=stored.video,
        poster=stored.poster,
        width=stored.width,
        height=stored.height,
        stored_frames=stored.frames,
        duration_ms=stored.duration_ms,
        size_bytes=stored.size_bytes,
    )
    if job is None:
        return False
    # Whoever stored a playable file for the current attempt did the work, also if its lease ran out meanwhile.
    _close(JobAttempt.objects.filter(pk=attempt_id, state=JobAttempt.State.OPEN), JobAttempt.State.SUCCEEDED)
    stored_files.claim(stored.files)
    ledger.capture(reference=job.id, reason=COMPLETED)
    _announce(job)
    return True


@transaction.atomic
def attempt_refused(*, attempt_id: uuid.UUID, token: uuid.UUID, retry_after: float, why: str) -> None:
    """The node surely did not take it: the job queues again, uncounted, and the node is left alone for
    `retry_after` seconds.
    """
    held = locks.held(attempt_id=attempt_id, token=token)
    _leave_alone(held, seconds=retry_after, why=why)
    if not _close(held, JobAttempt.State.CANCELED, error=why):
        return
    running = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.RUNNING)
    if running.update(state=State.QUEUED, current_attempt=None, step=0, attempt_count=F("attempt_count") - 1):
        events.publish(GenerationJob.objects.get(attempts=attempt_id))
        enqueue.dispatch()


@transaction.atomic
def attempt_lost(
    *,
    attempt_id: uuid.UUID,
    token: uuid.UUID,
    error: str,
    code: str = "node_lost",
    message: str = NODE_LOST,
    pause: float = 0.0,
) -> None:
    """The attempt came to nothing, which is no verdict on the job: it queues again while attempts are left,
    else it fails.

    With `pause` its node is left alone for that many seconds.
    """
    held = locks.held(attempt_id=attempt_id, token=token)
    if pause:
        _leave_alone(held, seconds=pause, why=error)
    node_health.count_failure(held, error=error)
    if not _close(held, JobAttempt.State.LOST, error=error):
        return
    held_up = GenerationJob.objects.filter(
        current_attempt=attempt_id, state__in=[State.RUNNING, State.STORING]
    )
    job = held_up.first()
    again = held_up.filter(attempt_count__lt=settings.JOB_MAX_ATTEMPTS)
    if again.update(state=State.QUEUED, current_attempt=None, step=0, generation_ms=None) and job:
        job.refresh_from_db()
        events.publish(job)
    elif job is not None:
        _fail(held_up, code=code, message=message)
    enqueue.dispatch()


@transaction.atomic
def attempt_failed(
    *,
    attempt_id: uuid.UUID,
    token: uuid.UUID,
    code: str,
    message: str,
    error: str,
    blame_node: bool = True,
) -> None:
    """A definite verdict: the job ends here. `message` is for its owner, `error` for staff."""
    held = locks.held(attempt_id=attempt_id, token=token)
    if blame_node:
        node_health.count_failure(held, error=error)
    if not _close(held, JobAttempt.State.FAILED, error=error):
        return
    _fail(
        GenerationJob.objects.filter(current_attempt=attempt_id, state__in=[State.RUNNING, State.STORING]),
        code=code,
        message=message,
    )
    enqueue.dispatch()


@transaction.atomic
def attempt_stopped(*, attempt_id: uuid.UUID, token: uuid.UUID, stopped_at_step: int | None) -> None:
    """The node confirmed a cancel: its slot is free again."""
    held = locks.held(attempt_id=attempt_id, token=token)
    if _close(held, JobAttempt.State.CANCELED, stopped_at_step=stopped_at_step):
        job = GenerationJob.objects.get(attempts=attempt_id)
        logger.info("job %s stopped at step %s of %s", job.id.hex, stopped_at_step, job.num_inference_steps)
        events.publish(job)
        enqueue.dispatch()


# --- The ends ---------------------------------------------------------------------------------------------------------


@transaction.atomic
def cancel(*, job: GenerationJob, actor: User | None = None, reason: str = CANCELED) -> GenerationJob:
    """Stop a queued or running job and give its credits back at once; the node is told by the reconciler.

    Canceling a canceled job again is harmless.

    Raises:
        CannotCancel: it is being stored or has ended otherwise.
    """
    live = GenerationJob.objects.filter(pk=job.pk, state__in=[State.QUEUED, State.RUNNING])
    locks.lock_jobs(live)
    ended = _end(live, state=State.CANCELED, error_code="canceled", error_message=gettext_noop("Canceled."))
    if ended is None:
        job.refresh_from_db()
        if job.state == State.CANCELED:
            return job
        raise BeingStored() if job.state == State.STORING else CannotCancel()
    _ask_to_stop(ended)
    ledger.release(reference=ended.id, reason=reason, actor=actor)
    _announce(ended)
    return ended


@transaction.atomic
def expire(*, job_id: uuid.UUID) -> bool:
    """End a job that is past its deadline, in whichever live state it is."""
    live = GenerationJob.objects.filter(pk=job_id, state__in=GenerationJob.LIVE, deadline_at__lt=Now())
    locks.lock_jobs(live)
    minutes = round(settings.JOB_DEADLINE_SECONDS / 60)
    ended = _fail(live, code="timed_out", message=f"Video generation timed out (>{minutes} min)")
    if ended is not None:
        _ask_to_stop(ended)
    return ended is not None


@transaction.atomic
def delete(*, job: GenerationJob) -> None:
    """Hide an ended job from its owner for good; the row stays for the books, the files go (see
    tasks.remove_files).

    Raises:
        CannotDelete: it is still live.
    """
    hidden = GenerationJob.objects.filter(pk=job.pk, finished_at__isnull=False, deleted_at=None)
    if hidden.update(deleted_at=Now()):
        job.refresh_from_db()
        stored_files.let_go(StoredClip(video=job.video.name or "", poster=job.poster.name or ""))
        enqueue.remove_files()
        return
    job.refresh_from_db()
    if job.is_live:
        raise CannotDelete()


@transaction.atomic
def cancel_all(*, user: User, reason: str) -> int:
    """Cancel every live job of somebody who was banned or is leaving; how many there were.

    What is being stored finishes.
    """
    canceled = 0
    live = GenerationJob.objects.filter(user=user, state__in=[State.QUEUED, State.RUNNING])
    # All are locked before the first release touches the wallet; what comes after is not among them.
    for job in GenerationJob.objects.filter(pk__in=locks.lock_jobs(live)):
        try:
            cancel(job=job, reason=reason)
            canceled += 1
        except CannotCancel:
            logger.info("job %s ended before it could be canceled", job.id.hex)
    return canceled


def refund(*, job: GenerationJob, reason: str, actor: User) -> None:
    """Give back, once, what a completed job cost.

    Raises:
        ledger errors: NotFound when it was not charged.
    """
    ledger.refund(reference=job.id, reason=reason, actor=actor)


def receipt(job: GenerationJob) -> dict[str, int]:
    """What the ledger says of a job, in credits: reserved, captured, released, refunded."""
    totals = {"reserved": 0, "captured": 0, "released": 0, "refunded": 0}
    names = {"reserve": "reserved", "capture": "captured", "release": "released", "refund": "refunded"}
    # Of whichever wallet: when accounts are joined, entries stay in the one that they were made in.
    for entry in CreditTransaction.objects.filter(reference=job.id, kind__in=names):
        totals[names[entry.kind]] += max(abs(entry.posted_delta), abs(entry.held_delta))
    return totals


def _fail(live: "QuerySet[GenerationJob]", *, code: str, message: str) -> GenerationJob | None:
    ended = _end(live, state=State.FAILED, error_code=code, error_message=message[:500])
    if ended is not None:
        ledger.release(reference=ended.id, reason=f"{FAILED}: {message}")
        logger.warning("job %s failed: %s (%s)", ended.id.hex, message, code)
        _announce(ended)
    return ended


def _end(live: "QuerySet[GenerationJob]", *, state: str, **values: object) -> GenerationJob | None:
    """The one conditional UPDATE behind every end; the job as it is now, or None when the race was lost."""
    job_id = live.values_list("pk", flat=True).first()
    if job_id is None or not live.filter(pk=job_id).update(state=state, finished_at=Now(), **values):
        return None
    return GenerationJob.objects.select_related("user").get(pk=job_id)


def _announce(job: GenerationJob) -> None:
    job_finished.send(sender=GenerationJob, job=job)
    events.publish(job)


def _heard() -> dict[str, object]:
    """What an answer of the node changes in its attempt."""
    return {"heard_at": Now(), "silent_since": None}


def _ask_to_stop(job: GenerationJob) -> None:
    JobAttempt.objects.filter(job=job, state=JobAttempt.State.OPEN).update(cancel_requested_at=Now())


def _leave_alone(held: "QuerySet[JobAttempt]", *, seconds: float, why: str) -> None:
    """The node of an attempt that is still the caller's gets no jobs for so long; before the attempt is closed."""
    GpuNode.objects.filter(attempts__in=held).update(
        leave_alone_until=locks.until(seconds), status_detail=why[:300]
    )


def _close(
    attempt: "QuerySet[JobAttempt]", state: str, *, error: str = "", stopped_at_step: int | None = None
) -> bool:
    """`attempt`: the one, fenced as its caller needs it; False when it is not so any more."""
    values: dict[str, object] = {"state": state, "closed_at": Now(), "error": error[:500]}
    if stopped_at_step is not None:
        values["stopped_at_step"] = stopped_at_step
    return bool(attempt.update(**values))
