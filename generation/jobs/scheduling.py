"""The choice of the next job and its node: a queued job is claimed together with a free slot on a healthy node."""

import uuid
from collections import Counter
from collections.abc import Iterable

from django.conf import settings
from django.db import transaction
from django.db.models import Case, Count, F, IntegerField, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.functions import Coalesce, Now

from generation.jobs import events, locks
from generation.models import GenerationJob, GpuNode, JobAttempt

State = GenerationJob.State

# The pace of a node that makes clips within one request, until it has made one here: 28 s for 16 frames of 20 steps.
USUAL_SECONDS_PER_FRAME_STEP = 28 / (16 * 20)


def claim_next() -> JobAttempt | None:
    """Give the fairest queued job to the least loaded healthy node with a free slot.

    The node's row is locked while its slots are counted, the job's row while it is claimed, skipping jobs that others
    have locked, so any number of dispatchers may run. Returns the opened attempt, which holds its own lease, or None.
    """
    for node in _nodes_with_a_free_slot():
        attempt = _claim_for(node)
        if attempt is not None:
            return attempt
    return None


def work_is_waiting() -> bool:
    return GenerationJob.objects.filter(state=State.QUEUED).exists() and bool(_nodes_with_a_free_slot())


def could_move(attempt: JobAttempt) -> bool:
    """Look whether another node that can make this clip has an idle GPU, and the job may be tried once more."""
    running = GenerationJob.objects.filter(
        current_attempt=attempt, state=State.RUNNING, attempt_count__lt=settings.JOB_MAX_ATTEMPTS
    )
    others = [node for node in _usable_nodes() if node.pk != attempt.node_id]
    taken = _slots_taken(others)
    idle = [node for node in others if taken[node.pk] < node.capacity]
    return any(_it_can_run(node, running).exists() for node in idle)


def why_not_on(node: GpuNode, job: GenerationJob) -> str | None:
    """Say why `node` cannot take a job now, to be read after its name; None when it can. Exact while it is locked."""
    if not node.enabled or node.set_aside_at is not None:
        return "is switched off or set aside"
    if node.pk not in {usable.pk for usable in _usable_nodes()}:
        return "does not answer or is busy just now"
    if not _it_can_run(node, GenerationJob.objects.filter(pk=job.pk)).exists():
        return "cannot make this video: it has another model or size, or is too slow for it"
    if _slots_taken([node])[node.pk] >= node.slots:
        return "has no free slot"
    return None


def queue_positions(jobs: Iterable[GenerationJob]) -> dict[uuid.UUID, int]:
    """Count the place of each queued one, in one query; 1 is next.

    By time alone: jobs of users with fewer running clips may still go first.
    """
    queued = [job.pk for job in jobs if job.state == State.QUEUED]
    if not queued:
        return {}
    ahead = GenerationJob.objects.filter(state=State.QUEUED, created_at__lt=OuterRef("created_at")).order_by()
    count = ahead.values("state").annotate(number=Count("pk")).values("number")
    rows = GenerationJob.objects.filter(pk__in=queued).order_by()
    return {pk: number + 1 for pk, number in rows.values_list("pk", Coalesce(Subquery(count), 0))}


def _nodes_with_a_free_slot() -> list[GpuNode]:
    nodes = _usable_nodes()
    taken = _slots_taken(nodes)
    return sorted(
        (node for node in nodes if taken[node.pk] < node.slots), key=lambda node: taken[node.pk] / node.slots
    )


def _usable_nodes() -> list[GpuNode]:
    """List the nodes that take work now, whether or not a slot is free."""
    welcome = GpuNode.objects.healthy().filter(enabled=True, set_aside_at=None)
    left_alone = Q(leave_alone_until__gte=Now())
    return [node for node in welcome.exclude(left_alone) if node.effective_protocol]


def _slots_taken(nodes: list[GpuNode]) -> Counter[int]:
    """Count the attempts on each node, by its id, without those whose file is being stored: their GPU is done."""
    open_attempts = JobAttempt.objects.filter(node__in=nodes, state=JobAttempt.State.OPEN)
    return Counter(open_attempts.exclude(job__state=State.STORING).values_list("node_id", flat=True))


@transaction.atomic
def _claim_for(node: GpuNode) -> JobAttempt | None:
    # Waits for others that claim here: skipping would leave a job lying until the reconciler wakes the dispatch.
    unlocked = GpuNode.objects.filter(pk=node.pk, enabled=True, set_aside_at=None)
    locked = unlocked.select_for_update(no_key=True).first()
    if locked is None or _slots_taken([locked])[locked.pk] >= locked.slots:
        return None
    job = _fairest_job(locked)
    if job is None:
        return None
    attempt = open_attempt(job, locked)
    claimed = GenerationJob.objects.filter(pk=job.pk, state=State.QUEUED).update(
        state=State.RUNNING,
        current_attempt=attempt,
        attempt_count=F("attempt_count") + 1,
        started_at=Now(),
        step=0,
    )
    if not claimed:
        raise RuntimeError(f"job {job.pk.hex} changed while its row was locked")
    job.refresh_from_db()
    events.publish(job)
    return attempt


def open_attempt(job: GenerationJob, node: GpuNode) -> JobAttempt:
    """Open an attempt. The dispatcher holds its lease until it is posted; one long request is the reconciler's."""
    identity = uuid.uuid4()
    attempt = JobAttempt.objects.create(
        id=identity,
        job=job,
        node=node,
        protocol=node.effective_protocol,
        lease_token=identity if node.runs_in_background else None,
        lease_expires_at=locks.until() if node.runs_in_background else Now(),
    )
    attempt.refresh_from_db(fields=["lease_expires_at"])  # set by PostgreSQL's clock
    return attempt


def _fairest_job(node: GpuNode) -> GenerationJob | None:
    """Find the job with the fewest running clips of its user, then the oldest. Only busy users need a count."""
    running = GenerationJob.objects.filter(state__in=[State.RUNNING, State.STORING])
    busy = list(running.order_by().values("user").annotate(clips=Count("pk")))
    waiting = GenerationJob.objects.filter(state=State.QUEUED, deadline_at__gt=Now())
    # no_key: a row that only references the job, being inserted just now, must not make it look taken.
    queued = _it_can_run(node, waiting).select_for_update(skip_locked=True, no_key=True, of=("self",))
    if busy:
        clips = [When(user=row["user"], then=Value(row["clips"])) for row in busy]
        queued = queued.annotate(running=Case(*clips, default=Value(0), output_field=IntegerField()))
        return queued.order_by("running", "created_at").first()
    return queued.order_by("created_at").first()


def _it_can_run(node: GpuNode, jobs: QuerySet[GenerationJob]) -> QuerySet[GenerationJob]:
    served = jobs.filter(Q(model="") | Q(model=node.backend), Q(size="") | Q(size__in=node.sizes))
    if node.runs_in_background:
        return served
    # One request makes the whole clip there, so it is given only clips that it can finish before the client gives up.
    affordable = settings.FIELD_NODE_TIMEOUT_SECONDS / _seconds_per_frame_step(node)
    return served.annotate(work=F("num_frames") * F("num_inference_steps")).filter(work__lte=affordable)


def _seconds_per_frame_step(node: GpuNode) -> float:
    """Measure the slowest of the node's last clips."""
    done = JobAttempt.objects.filter(
        node=node, state=JobAttempt.State.SUCCEEDED, generation_ms__isnull=False, closed_at__isnull=False
    )
    rate = F("generation_ms") / 1000.0 / (F("job__num_frames") * F("job__num_inference_steps"))
    rates = done.order_by("-closed_at").values_list(rate, flat=True)[:10]
    return max(filter(None, rates), default=USUAL_SECONDS_PER_FRAME_STEP)
