"""The line before the GPUs: who waits, and how long somebody who joins now would."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.db.models import Count

from generation import scheduling
from generation.models import GenerationJob, GpuNode

State = GenerationJob.State


@dataclass(frozen=True)
class Line:
    """The queue as it is now.

    capacity: clips that all healthy nodes make at once; 0 when none is ready. running: clips being made.
    queued: waiting clips by their preset's primary key. positions: places of the jobs asked about, 1 is next.
    nodes: all that are enabled, each with `is_healthy`.
    """

    capacity: int
    running: int
    queued: Mapping[int, int]
    nodes: Sequence[GpuNode] = ()
    positions: Mapping[uuid.UUID, int] = field(default_factory=dict)

    def seconds_before(self, position: int, expected: int) -> float:
        """Until the clip at that place starts, when all before it take `expected` seconds. Needs a capacity."""
        # What runs now is half done on average.
        return (position - 1 + self.running / 2) * expected / self.capacity

    def seconds_to_join(self, expected: Mapping[int, int]) -> int | None:
        """Until a clip asked for now would start, from what each preset takes; None when no node is ready."""
        if not self.capacity:
            return None
        usual = max(expected.values(), default=0)
        waiting = sum(number * expected.get(preset, usual) for preset, number in self.queued.items())
        if not waiting and self.running < self.capacity:
            return 0
        return round((waiting + self.running / 2 * usual) / self.capacity)


def now(jobs: list[GenerationJob]) -> Line:
    """The line, with the places of those jobs that are queued; at most three queries."""
    counts = GenerationJob.objects.filter(state__in=[State.QUEUED, State.RUNNING]).order_by()
    rows = list(counts.values_list("state", "preset").annotate(number=Count("pk")))
    nodes = list(GpuNode.objects.told_apart().filter(enabled=True))
    return Line(
        capacity=sum(node.capacity for node in nodes if _takes_work(node)),
        nodes=nodes,
        running=sum(number for state, _, number in rows if state == State.RUNNING),
        queued={preset: number for state, preset, number in rows if state == State.QUEUED},
        positions=scheduling.queue_positions(jobs),
    )


def _takes_work(node: GpuNode) -> bool:
    healthy: bool = getattr(node, "is_healthy", False)
    return healthy and node.set_aside_at is None
