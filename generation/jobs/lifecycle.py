"""Every change of state of a job. Each is one conditional UPDATE, fenced by the attempt where one is open, in one
transaction with its credit move and the signal that makes its deliveries. A transition that finds no row has lost a
race: it changes nothing and says so. A life begins in `submission`.
"""

import logging
import uuid

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, Q, QuerySet, When
from django.db.models.functions import Least, Now
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.models import CreditTransaction, User
from generation.errors import BeingStored, CannotCancel, CannotDelete, in_its_words
from generation.jobs import enqueue, events, locks, node_health, scheduling, stored_files
from generation.media import VideoFacts
from generation.models import GenerationJob, GpuNode, JobAttempt

logger = logging.getLogger(__name__)
State = GenerationJob.State

# The kinds of a job's entries, and their sums.
TOTALS = {"reserve": "reserved", "capture": "captured", "release": "released", "refund": "refunded"}
# The columns of an attempt that every answer of its node changes.
HEARD: dict[str, object] = {"heard_at": Now(), "silent_since": None}
# Stored in English, translated where they are shown.
COMPLETED = gettext_noop("Video completed")
FAILED = gettext_noop("Video failed")
CANCELED = gettext_noop("Canceled")
NODE_LOST = gettext_noop("The GPU node could not be reached or stopped answering.")
# With the defaults of JOB_DEADLINE_SECONDS and FIELD_NODE_TIMEOUT_SECONDS; with other values it stays English.
gettext_noop("Video generation timed out (>30 min)")
gettext_noop("Video generation timed out (>90s)")


# --- While it runs: every function is fenced by the attempt and its lease ---------------------------------------------


@transaction.atomic
def attempt_posted(*, attempt_id: uuid.UUID, token: uuid.UUID, remote_id: str) -> bool:
    """Record that the node took it."""
    held = locks.held(attempt_id=attempt_id, token=token)
    node_health.blame_refusers(held)
    if not held.update(remote_id=remote_id, posted_at=Now(), **HEARD):
        return False
    events.publish(GenerationJob.objects.get(attempts=attempt_id))
    return True


def request_sent(*, attempt_id: uuid.UUID, token: uuid.UUID) -> bool:
    """Record that the one long request to a node goes out now: from here on it cannot be re-attached to."""
    return bool(locks.held(attempt_id=attempt_id, token=token).filter(posted_at=None).update(posted_at=Now()))


@transaction.atomic
def record_progress(
    *, attempt_id: uuid.UUID, token: uuid.UUID, step: int, after_silence: bool = False
) -> bool:
    """Record the node's denoising step; False when the lease is lost and the caller must stop.

    `after_silence`: open pages say that the node does not answer, and are to hear that it does.
    """
    if not locks.held(attempt_id=attempt_id, token=token).update(step=step, **HEARD):
        return False
    moved = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.RUNNING).exclude(step=step)
    if moved.update(step=step) or after_silence:
        events.publish(GenerationJob.objects.get(current_attempt=attempt_id))
    return True


@transaction.atomic
def note_silence(*, attempt_id: uuid.UUID, token: uuid.UUID, seconds: float) -> float | None:
    """Record that a question to the node went unanswered for so many seconds.

    Returns the seconds of silence by now; None when the lease is lost. Any answer ends the silence, which is kept in
    the row, so that a reconciler that is started anew does not forget it.
    """
    attempt = locks.held(attempt_id=attempt_id, token=token)
    if attempt.filter(silent_since=None).update(silent_since=locks.until(-seconds)):
        events.publish(GenerationJob.objects.get(attempts=attempt_id))
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
    """Record that the node has made the file, and have it fetched. The node's slot is free from here on."""
    held = locks.held(attempt_id=attempt_id, token=token)
    node_health.blame_refusers(held)
    if not held.update(file_name=file_name, generation_ms=generation_ms, profile=profile, **HEARD):
        return False
    running = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.RUNNING)
    if not running.update(state=State.STORING, step=F("num_inference_steps"), generation_ms=generation_ms):
        # Canceled or past its deadline meanwhile: the late result is discarded and never charged.
        _close(held, JobAttempt.State.CANCELED, error="finished after the job had ended; discarded")
        _publish_stop(attempt_id)
        enqueue.dispatch()
        return False
    events.publish(GenerationJob.objects.get(current_attempt=attempt_id))
    enqueue.store(attempt_id=attempt_id)
    enqueue.dispatch()
    return True


@transaction.atomic
def complete(*, attempt_id: uuid.UUID, files: tuple[str, str], facts: VideoFacts) -> bool:
    """Charge for a stored clip. files: names of the video and its poster in the storage.

    False when the job ended meanwhile: the caller removes the files, nothing is charged. The same when the files,
    which were announced before they were written, are not waiting to be claimed any more.
    """
    node_health.count_success(attempt_id=attempt_id)
    storing = GenerationJob.objects.filter(current_attempt=attempt_id, state=State.STORING)
    locks.lock_jobs(storing)
    if not stored_files.held(files):
        return False
    ended = _end(
        storing,
        state=State.COMPLETED,
        video=files[0],
        poster=files[1],
        width=facts.width,
        height=facts.height,
        stored_frames=facts.frames,
        duration_ms=facts.duration_ms,
        size_bytes=facts.size_bytes,
    )
    if not ended:
        return False
    # A playable file for the current attempt counts, also if the lease ran out meanwhile.
    _close(JobAttempt.objects.filter(pk=attempt_id, state=JobAttempt.State.OPEN), JobAttempt.State.SUCCEEDED)
    stored_files.claim(files)
    ledger.capture(reference=ended[0].id, reason=COMPLETED)
    _announce(ended)
    return True


@transaction.atomic
def attempt_refused(
    *, attempt_id: uuid.UUID, token: uuid.UUID, retry_after: float, why: str, certain: bool = False
) -> None:
    """Queue the job again, uncounted: the node surely did not take it. It is left alone for `retry_after` seconds.

    certain: it would refuse every other job, too, so it is set aside.
    """
    held = locks.held(attempt_id=attempt_id, token=token)
    _leave_alone(held, seconds=retry_after, why=why)
    if certain:
        node_health.count_failure(held, error=why, certain=True)
    if _close(held, JobAttempt.State.CANCELED, error=why):
        _queue_uncounted(attempt_id)


@transaction.atomic
def attempt_rejected(*, attempt_id: uuid.UUID, token: uuid.UUID, why: str) -> None:
    """Weigh a node's refusal of the request itself, which may be the node's own fault.

    It ends the job when a second node says the same, or the same node once it has taken another job or made a canary
    clip. Until then the job queues again, for another node if there is one. `why` is for its owner.
    """
    held = locks.held(attempt_id=attempt_id, token=token)
    attempt = held.select_related("job", "node").first()
    if attempt is None:
        return
    before = set(attempt.job.attempts.filter(state=JobAttempt.State.REFUSED).values_list("node", flat=True))
    asked = before | {attempt.node_id}
    others = scheduling.others_for(attempt.job, asked=asked)
    certain = attempt.node_id in before or (len(asked) > 1 and node_health.are_proven(asked, attempt.job))
    if not others and not certain:
        node_health.have_canaries_made(asked)
    may_go_on = others or (len(asked) == 1 and attempt.job.attempt_count < settings.JOB_MAX_ATTEMPTS)
    if certain or not may_go_on:
        verdict = {"code": "rejected", "message": in_its_words(why), "error": why}
        attempt_failed(attempt_id=attempt_id, token=token, blame_node=False, **verdict)
        return
    logger.warning("job %s: %s refuses it: %s", attempt.job_id.hex, attempt.node, why)
    if _close(held, JobAttempt.State.REFUSED, error=why):
        _queue_uncounted(attempt_id)


def _queue_uncounted(attempt_id: uuid.UUID) -> None:
    """Queue the job again as if this attempt had never been opened."""
    attempt = JobAttempt.objects.get(pk=attempt_id)
    running = GenerationJob.objects.filter(current_attempt=attempt, state=State.RUNNING)
    count = F("attempt_count") - int(attempt.counts)
    running.update(state=State.QUEUED, current_attempt=None, step=0, attempt_count=count)
    events.publish(GenerationJob.objects.get(pk=attempt.job_id))
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
    ours: bool = False,
    certain: bool = False,
) -> bool:
    """Close an attempt that is no verdict on the job: it queues again while attempts are left, else it fails.

    With `pause` its node is left alone for that many seconds. certain: it would come to the same with every job there.
    ours: it was lost by our own fault, so neither the node nor the job pays for it. False when the lease is lost.
    """
    held = locks.held(attempt_id=attempt_id, token=token)
    if pause:
        _leave_alone(held, seconds=pause, why=error)
    if not ours:
        node_health.count_failure(held, error=error, certain=certain)
    if not _close(held, JobAttempt.State.LOST, error=error):
        return False
    if ours:
        _queue_uncounted(attempt_id)
        return True
    held_up = GenerationJob.objects.filter(
        current_attempt=attempt_id, state__in=[State.RUNNING, State.STORING]
    )
    job = held_up.first()
    again = held_up.filter(attempt_count__lt=settings.JOB_MAX_ATTEMPTS)
    if again.update(state=State.QUEUED, current_attempt=None, step=0, generation_ms=None) and job:
        job.refresh_from_db()
        events.publish(job)
    elif job is None or not _fail(held_up, code=code, message=message):
        _publish_stop(attempt_id)
    enqueue.dispatch()
    return True


@transaction.atomic
def attempt_failed(
    *, attempt_id: uuid.UUID, token: uuid.UUID, code: str, message: str, error: str, blame_node: bool = True
) -> None:
    """End the job by a definite verdict. `message` is for its owner, `error` for staff."""
    held = locks.held(attempt_id=attempt_id, token=token)
    if blame_node:
        node_health.count_failure(held, error=error)
    if not _close(held, JobAttempt.State.FAILED, error=error):
        return
    live = GenerationJob.objects.filter(current_attempt=attempt_id, state__in=[State.RUNNING, State.STORING])
    if not _fail(live, code=code, message=message):
        _publish_stop(attempt_id)
    enqueue.dispatch()


@transaction.atomic
def attempt_stopped(*, attempt_id: uuid.UUID, token: uuid.UUID, stopped_at_step: int | None) -> None:
    """Record that the node confirmed a cancel: its slot is free again."""
    held = locks.held(attempt_id=attempt_id, token=token)
    if _close(held, JobAttempt.State.CANCELED, stopped_at_step=stopped_at_step):
        job = GenerationJob.objects.get(attempts=attempt_id)
        logger.info("job %s stopped at step %s of %s", job.id.hex, stopped_at_step, job.num_inference_steps)
        events.publish(job)
        enqueue.dispatch()


# --- The ends ---------------------------------------------------------------------------------------------------------


def cancel(*, job: GenerationJob, actor: User | None = None, reason: str = CANCELED) -> GenerationJob:
    """Stop a queued or running job and give its credits back at once; the reconciler stops it on its node.

    What is made of it may be charged (CANCEL_CHARGE_AFTER_PERCENT). Canceling a canceled job again is harmless.

    Raises:
        CannotCancel: it is being stored or has ended otherwise.
    """
    this = GenerationJob.objects.filter(pk=job.pk)
    if ended := cancel_each(jobs=this, actor=actor, reason=reason, charge=True):
        return ended[0]
    job.refresh_from_db()
    if job.state == State.CANCELED:
        return job
    raise BeingStored() if job.state == State.STORING else CannotCancel()


@transaction.atomic
def cancel_each(
    *, jobs: "QuerySet[GenerationJob]", reason: str, actor: User | None = None, charge: bool = False
) -> list[GenerationJob]:
    """Cancel those of these jobs that are queued or running, in the queries of one; returns them.

    What is being stored finishes.
    """
    live = jobs.filter(state__in=[State.QUEUED, State.RUNNING])
    # All are locked before the first wallet is; later ones are not among them.
    locked = live.filter(pk__in=locks.lock_jobs(live))
    verdict = {"error_code": "canceled", "error_message": gettext_noop("Canceled.")}
    ended = _end(locked, state=State.CANCELED, cancel_fee=_share_made() if charge else 0, **verdict)
    _ask_to_stop(ended)
    for job in (each for each in ended if each.cancel_fee):
        ledger.capture(reference=job.id, reason=reason, amount=job.cancel_fee)
    free = [job.id for job in ended if not job.cancel_fee]
    ledger.release_each(references=free, reason=reason, actor=actor)
    _announce(ended)
    return ended


def _share_made() -> Case:
    """Make the price's part that a cancel costs: the share of the steps made, if CANCEL_CHARGE_AFTER_PERCENT are."""
    after, steps = settings.CANCEL_CHARGE_AFTER_PERCENT or 1000, F("num_inference_steps")  # 0: never
    due = Q(step__gt=0, step__gte=steps * after / 100.0)
    return Case(When(due, then=F("cost") * Least("step", steps) / steps), default=0)


@transaction.atomic
def expire(*, job_id: uuid.UUID) -> bool:
    """End a job that is past its deadline, in whichever live state it is."""
    live = GenerationJob.objects.filter(pk=job_id, state__in=GenerationJob.LIVE, deadline_at__lt=Now())
    locks.lock_jobs(live)
    minutes = round(settings.JOB_DEADLINE_SECONDS / 60)
    ended = _fail(live, code="timed_out", message=f"Video generation timed out (>{minutes} min)")
    _ask_to_stop(ended)
    return bool(ended)


@transaction.atomic
def delete(*, job: GenerationJob) -> None:
    """Hide an ended job from its owner for good; the row stays for the books, all else goes.

    Raises:
        CannotDelete: it is still live.
    """
    hidden = GenerationJob.objects.filter(pk=job.pk, finished_at__isnull=False, deleted_at=None)
    if hidden.update(deleted_at=Now()):
        job.refresh_from_db()
        stored_files.let_go(stored_files.all_of(job))
        enqueue.remove_files()
        return
    job.refresh_from_db()
    if job.is_live:
        raise CannotDelete()


def refund(*, job: GenerationJob, reason: str, actor: User) -> None:
    """Give back, once, what a completed job cost.

    Raises:
        ledger errors: NotFound when it was not charged.
    """
    ledger.refund(reference=job.id, reason=reason, actor=actor)


def entries_of(job: GenerationJob) -> list[CreditTransaction]:
    """Read the ledger's entries of a job, oldest first: its hold, its charge or release, and a refund.

    They may be in several wallets: when accounts are joined, entries stay in the one that they were made in.
    """
    return list(CreditTransaction.objects.filter(reference=job.id, kind__in=TOTALS).order_by("id"))


def receipt(job: GenerationJob) -> dict[str, int]:
    """Sum up the ledger's entries of a job, in credits: reserved, captured, released, refunded."""
    totals = dict.fromkeys(TOTALS.values(), 0)
    for entry in entries_of(job):
        totals[TOTALS[entry.kind]] += entry.moved
    return totals


def _fail(live: "QuerySet[GenerationJob]", *, code: str, message: str) -> list[GenerationJob]:
    ended = _end(live, state=State.FAILED, error_code=code, error_message=message[:500])
    ledger.release_each(references=[job.id for job in ended], reason=f"{FAILED}: {message}")
    for job in ended:
        logger.warning("job %s failed: %s (%s)", job.id.hex, message, code)
    _announce(ended)
    return ended


def _end(live: "QuerySet[GenerationJob]", *, state: str, **values: object) -> list[GenerationJob]:
    """Make the one conditional UPDATE behind every end; returns the jobs that it ended, as they are now."""
    rows = live.order_by("pk").select_for_update(no_key=True, of=("self",))
    ids = list(rows.values_list("pk", flat=True))
    live.filter(pk__in=ids).update(state=state, finished_at=Now(), **values)
    return list(GenerationJob.objects.filter(pk__in=ids).select_related("user").order_by("pk"))


def _announce(jobs: list[GenerationJob]) -> None:
    if jobs:
        events.jobs_finished.send(sender=GenerationJob, jobs=jobs)
        events.publish(*jobs)


def _publish_stop(attempt_id: uuid.UUID) -> None:
    """Tell listeners that the node is done with a job that had ended before: until then pages say that it stops."""
    events.publish(GenerationJob.objects.get(attempts=attempt_id))


def _ask_to_stop(jobs: list[GenerationJob]) -> None:
    JobAttempt.objects.filter(job__in=jobs, state=JobAttempt.State.OPEN).update(cancel_requested_at=Now())


def _leave_alone(held: "QuerySet[JobAttempt]", *, seconds: float, why: str) -> None:
    """Give the node of an attempt no jobs for so long. Call it before the attempt is closed."""
    GpuNode.objects.filter(attempts__in=held).update(
        leave_alone_until=locks.until(seconds), status_detail=why[:300]
    )


def _close(attempt: "QuerySet[JobAttempt]", state: str, *, error: str = "", **values: object) -> bool:
    """Close the attempt, fenced as its caller needs it; False when it is not so any more."""
    return bool(attempt.update(state=state, closed_at=Now(), error=error[:500], **values))
