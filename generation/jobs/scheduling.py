"""The choice of the next jobs and their nodes: queued jobs are claimed together with free slots on healthy nodes.

The jobs come first, so that an empty queue costs one look, however many nodes there are; and only those that a node
with a free slot can make, so that a claim takes no longer beside any number of others.
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.db import connection, transaction
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    Func,
    IntegerField,
    JSONField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
    Window,
)
from django.db.models.functions import Cast, Coalesce, Now, RowNumber

from generation.jobs import events, node_health
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import CLIENTS

State = GenerationJob.State

# The pace of a node that makes clips within one request, until it has made one here: 28 s for 16 frames of 20 steps.
USUAL_SECONDS_PER_FRAME_STEP = 28 / (16 * 20)
CLAIMED_AT_ONCE = 100
# Jobs that are looked at beyond those that are claimed, so that a few that must wait cost no further look.
SPARE = 20
# The advisory lock of a claim: dispatchers take turns, so that each decides by what the one before has committed.
CLAIMING = 0x4449_5350
# Attempts after which a job tries another node first.
DISAPPOINTED = (JobAttempt.State.REFUSED, JobAttempt.State.LOST, JobAttempt.State.FAILED)
# As `GpuNode.runs_in_background` does.
_BACKGROUND = [client.protocol for client in CLIENTS if client.background]
RUNS_IN_BACKGROUND = Q(protocol__in=_BACKGROUND) | Q(protocol="auto", detected_protocol__in=_BACKGROUND)


@dataclass
class _Place:
    """A node with free slots: the attempts that take them, and the most work that it finishes in time (any: None)."""

    node: GpuNode
    taken: int
    most_work: float | None

    def makes(self, job: GenerationJob) -> bool:
        return (
            job.model in ("", self.node.backend)
            and (not job.size or job.size in self.node.sizes)
            and (self.most_work is None or job.num_frames * job.num_inference_steps <= self.most_work)
        )

    @property
    def is_free(self) -> bool:
        return self.taken < self.node.slots

    @property
    def load(self) -> float:
        return self.taken / self.node.slots


@transaction.atomic
def claim(most: int = CLAIMED_AT_ONCE) -> list[JobAttempt]:
    """Give the fairest queued jobs to the least loaded healthy nodes with free slots.

    Any number of dispatchers may run. Returns the opened attempts; a reconciler hands them over to their nodes.
    """
    if not GenerationJob.objects.filter(state=State.QUEUED).exists():
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLAIMING])
    return _open(_choose(_places(_with_a_free_slot()), most))


def could_move(attempt: JobAttempt, *, idle: bool = True) -> bool:
    """Look whether another node that takes jobs can make this clip, and the job may be tried once more.

    idle: the other node's GPU must have nothing to do.
    """
    running = GenerationJob.objects.filter(
        current_attempt=attempt, state=State.RUNNING, attempt_count__lt=settings.JOB_MAX_ATTEMPTS
    )
    job = running.first()
    others = _usable_nodes().exclude(pk=attempt.node_id)
    if idle:
        others = others.filter(taken__lt=F("capacity"))
    return job is not None and any(place.makes(job) for place in _places(others))


def others_for(job: GenerationJob, *, asked: Iterable[int]) -> bool:
    """Look whether a node that takes work and can make this clip, now or later, was not asked. asked: ids of nodes."""
    return any(place.makes(job) for place in _places(_usable_nodes().exclude(pk__in=asked)))


class Room:
    """The free slots of one node, which are taken one by one. Exact while its row is locked."""

    def __init__(self, node: GpuNode) -> None:
        self._node = node
        self._place = next(iter(_places(_usable_nodes().filter(pk=node.pk))), None)

    def take(self, job: GenerationJob) -> str | None:
        """Take a slot for a job; or say why the node cannot take it now, to be read after the node's name."""
        if not self._node.enabled or self._node.set_aside_at is not None:
            return "is switched off or set aside"
        if self._place is None:
            return "does not answer or is busy just now"
        if not self._place.makes(job):
            return "cannot make this video: it has another model or size, or is too slow for it"
        if not self._place.is_free:
            return "has no free slot"
        self._place.taken += 1
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


def _usable_nodes() -> "QuerySet[Any]":
    """Select the nodes that take work now, whether or not a slot is free, with the attempts that take their slots.

    A node that answers no question about an attempt is left alone until it does.
    """
    on_it = JobAttempt.objects.filter(node=OuterRef("pk"), state=JobAttempt.State.OPEN).order_by()
    # The GPU is done with a clip whose file is being stored.
    taken = (
        on_it.exclude(job__state=State.STORING).values("node").annotate(number=Count("pk")).values("number")
    )
    welcome = GpuNode.objects.healthy().filter(enabled=True, set_aside_at=None)
    rested = welcome.exclude(leave_alone_until__gte=Now()).exclude(protocol="auto", detected_protocol="")
    heard = rested.exclude(Exists(on_it.filter(silent_since__isnull=False)))
    return heard.annotate(taken=Coalesce(Subquery(taken), 0)).order_by("pk")


def _with_a_free_slot() -> "QuerySet[Any]":
    """Do in SQL as `GpuNode.slots` does: of many nodes, few have a free slot while jobs wait."""
    slots = Case(When(RUNS_IN_BACKGROUND, then=F("capacity") + 1), default=Value(1))
    return _usable_nodes().filter(taken__lt=slots)


def _places(nodes: "QuerySet[Any]") -> list[_Place]:
    """Read nodes (`_usable_nodes`), each with what it can finish in time.

    One request makes the whole clip on a node without a queue, so it is given only clips that it can finish before the
    client gives up, measured by the slowest of its last ones.
    """
    done = JobAttempt.objects.filter(
        node=OuterRef("pk"),
        state=JobAttempt.State.SUCCEEDED,
        generation_ms__isnull=False,
        closed_at__isnull=False,
    )
    rate = F("generation_ms") / 1000.0 / (F("job__num_frames") * F("job__num_inference_steps"))
    rates = ArraySubquery(done.order_by("-closed_at").values_list(rate, flat=True)[:10])
    measured = Case(When(~RUNS_IN_BACKGROUND, then=rates), default=None)
    found = nodes.defer("api_key").annotate(rates=measured)
    return [
        _Place(node, node.taken, None if node.runs_in_background else _most_work(node.rates or []))
        for node in found
    ]


def _most_work(rates: list[float]) -> float:
    """Frames times steps that a node finishes within one request, by its seconds for each."""
    slowest: float = max(filter(None, rates), default=USUAL_SECONDS_PER_FRAME_STEP)
    return float(settings.FIELD_NODE_TIMEOUT_SECONDS / slowest)


def _choose(places: list[_Place], most: int) -> list[tuple[GenerationJob, GpuNode]]:
    """Pair jobs, the fairest first, with nodes: one that has not failed with it before, then the least loaded."""
    chosen: list[tuple[GenerationJob, GpuNode]] = []
    seen: list[uuid.UUID] = []
    while places and len(chosen) < most:
        wanted = min(most - len(chosen), sum(place.node.slots - place.taken for place in places)) + SPARE
        jobs = list(_fairest(places).exclude(pk__in=seen)[:wanted])
        disappointed, barred = _past_of(jobs)
        for job in jobs:
            bad, no = disappointed[job.pk], barred[job.pk]
            able = [each for each in places if each.is_free and each.node.pk not in no and each.makes(job)]
            if not able or len(chosen) == most:
                continue
            place = min(
                able, key=lambda each: (each.node.pk in bad, each.load, each.node.consecutive_failures)
            )
            chosen.append((job, place.node))
            place.taken += 1
        places = [place for place in places if place.is_free]
        seen += [job.pk for job in jobs]
        if len(jobs) < wanted:
            break
    return chosen


def _fairest(places: list[_Place]) -> "QuerySet[GenerationJob]":
    """Select queued jobs that these nodes can make: fewest running clips of the user first, then the oldest.

    A user's second job waits as if the first ran already, so the order holds for as many as are claimed at once.
    """
    running = GenerationJob.objects.filter(state__in=[State.RUNNING, State.STORING]).order_by()
    busy = {str(user): clips for user, clips in running.values_list("user").annotate(clips=Count("pk"))}
    # One look into a table of the busy users for each job; a CASE over them would be as long as they are many.
    clips = Func(
        Value(busy, output_field=JSONField()),
        Cast("user_id", TextField()),
        template="(%(expressions)s)",
        arg_joiner=" ->> ",
        output_field=TextField(),
    )
    place = Window(RowNumber(), partition_by=F("user"), order_by="created_at")
    turn = place + Coalesce(Cast(clips, IntegerField()), 0)
    waiting = GenerationJob.objects.filter(_wanted(places), state=State.QUEUED, deadline_at__gt=Now())
    fields = ("model", "size", "num_frames", "num_inference_steps")
    return waiting.annotate(turn=turn).only(*fields).order_by("turn", "created_at")


def _wanted(places: list[_Place]) -> Q:
    """Describe the jobs that at least one of these nodes can make; nodes of one kind are one condition."""
    most: dict[tuple[str, tuple[str, ...]], float | None] = {}
    for place in places:
        kind = (place.node.backend, tuple(place.node.sizes))
        known = most.get(kind, 0.0)
        most[kind] = None if known is None or place.most_work is None else max(known, place.most_work)
    wanted = Q(pk__in=[])
    for (backend, sizes), work in most.items():
        kind_wanted = Q(model__in=["", backend], size__in=["", *sizes])
        if work is not None:
            kind_wanted &= Q(num_frames__lte=work / F("num_inference_steps"))
        wanted |= kind_wanted
    return wanted


def _past_of(jobs: list[GenerationJob]) -> tuple[dict[uuid.UUID, set[int]], dict[uuid.UUID, set[int]]]:
    """Look up which nodes came to nothing with these jobs, and which of them are not to be asked again yet.

    One that refused a job is barred from it until it has taken another one.
    """
    disappointed: dict[uuid.UUID, set[int]] = {job.pk: set() for job in jobs}
    barred: dict[uuid.UUID, set[int]] = {job.pk: set() for job in jobs}
    tried = JobAttempt.objects.filter(job__in=jobs, state__in=DISAPPOINTED).order_by()
    rows = list(tried.values_list("job", "node", "state", "closed_at"))
    good = node_health.last_good({node for _, node, state, _ in rows if state == JobAttempt.State.REFUSED})
    for job, node, state, closed_at in rows:
        disappointed[job].add(node)
        since = good.get(node)
        if state == JobAttempt.State.REFUSED and not (since and closed_at and since > closed_at):
            barred[job].add(node)
    return disappointed, barred


def _open(chosen: list[tuple[GenerationJob, GpuNode]]) -> list[JobAttempt]:
    """Open the attempts, as far as nodes and jobs are still as they were when they were chosen."""
    if not chosen:
        return []
    # Staff may have drained a node, or moved a job to it: its row is locked while its slots are counted.
    used = {node.pk for _, node in chosen}
    nodes = GpuNode.objects.filter(pk__in=used).order_by("pk").select_for_update(no_key=True).in_bulk()
    free = {
        place.node.pk: place.node.slots - place.taken
        for place in _places(_usable_nodes().filter(pk__in=used))
    }
    # no_key: a row that only references the job, being inserted just now, must not make it look taken.
    queued = GenerationJob.objects.filter(pk__in=[job.pk for job, _ in chosen], state=State.QUEUED)
    locked = queued.order_by("pk").select_for_update(skip_locked=True, no_key=True, of=("self",)).in_bulk()
    pairs: list[tuple[GenerationJob, GpuNode]] = []
    used_up: Counter[int] = Counter()
    for job, node in chosen:
        if job.pk in locked and used_up[node.pk] < free.get(node.pk, 0):
            used_up[node.pk] += 1
            pairs.append((locked[job.pk], nodes[node.pk]))
    return open_attempts(pairs)


def open_attempts(pairs: list[tuple[GenerationJob, GpuNode]], *, counts: bool = True) -> list[JobAttempt]:
    """Open attempts at locked jobs, whose leases are free for a reconciler. counts: towards JOB_MAX_ATTEMPTS."""
    attempts = [
        JobAttempt(job=job, node=node, protocol=node.effective_protocol, counts=counts) for job, node in pairs
    ]
    for attempt in attempts:
        attempt.lease_token = attempt.pk
    JobAttempt.objects.bulk_create(attempts)
    opened = {attempt.job_id: attempt for attempt in attempts}
    current = JobAttempt.objects.filter(job=OuterRef("pk"), state=JobAttempt.State.OPEN).values("pk")
    GenerationJob.objects.filter(pk__in=opened).update(
        state=State.RUNNING,
        current_attempt=Subquery(current),
        attempt_count=F("attempt_count") + int(counts),
        started_at=Now(),
        step=0,
    )
    for job in GenerationJob.objects.filter(pk__in=opened):
        opened[job.pk].job = job
    events.publish(*(attempt.job for attempt in attempts))
    return attempts
