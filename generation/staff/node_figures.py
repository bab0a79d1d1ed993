"""What nodes did day by day: days that are over are added up once, in the background (`keep`, which `day_figures` has
done with its own), and kept beside the other figures of the day (`DayFigures.nodes`), so that a node's page takes the
same time however many clips it has made.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from django.db import connection

from generation.models import DayFigures, GpuNode
from generation.staff import days


@dataclass(frozen=True)
class Work:
    """clips: that came out of a node. milliseconds: what its attempts took, those that came to nothing included.
    charged: of the clips, those that cost something.
    """

    clips: int = 0
    milliseconds: int = 0
    charged: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.clips + other.clips, self.milliseconds + other.milliseconds, self.charged + other.charged
        )


def work_since(first: date, node: GpuNode) -> Work:
    """From the beginning of `first` until now. From the first day on that is not kept, it is added up here."""
    rows = DayFigures.objects.filter(day__gte=first, day__lt=days.settled(), nodes__isnull=False)
    kept: dict[date, dict[str, list[int]]] = {row.day: row.nodes or {} for row in rows}
    end = days.today() + timedelta(days=1)
    fresh = next(day for day in days.between(first, end) if day not in kept)
    parts = [Work(*nodes.get(str(node.pk), ())) for day, nodes in kept.items() if day < fresh]
    parts += [work for _, _, work in _add_up(fresh, end, node)]
    return sum(parts, start=Work())


def keep(wanted: Iterable[date]) -> None:
    """For those of the days that are kept without it. Safe to repeat."""
    bare = list(DayFigures.objects.filter(day__in=wanted, nodes__isnull=True).order_by("day"))
    if not bare:
        return
    found: dict[date, dict[str, list[int]]] = {row.day: {} for row in bare}
    for day, node_id, work in _add_up(bare[0].day, bare[-1].day + timedelta(days=1)):
        found.setdefault(day, {})[str(node_id)] = [work.clips, work.milliseconds, work.charged]
    for row in bare:
        row.nodes = found[row.day]
    DayFigures.objects.bulk_update(bare, ["nodes"])


def refunded_since(first: date, node: GpuNode) -> int:
    """Of the clips that it made since the beginning of `first`, how many were refunded.

    Looked for among the refunds since then, which are few beside the clips, and none of which is older than its clip.
    """
    with connection.cursor() as cursor:
        cursor.execute(REFUNDED, {"first": days.begin(first), "node": node.pk})
        [(number,)] = cursor.fetchall()
    return int(number)


def _add_up(first: date, end: date, node: GpuNode | None = None) -> Iterator[tuple[date, int, Work]]:
    """From the attempts themselves, up to `end` without it: of all nodes or one, the days on which there was any."""
    with connection.cursor() as cursor:
        bounds = {"first": days.begin(first), "end": days.begin(end)}
        cursor.execute(WORK, bounds | {"node": None if node is None else node.pk})
        rows = cursor.fetchall()
    for day, node_id, *numbers in rows:
        yield day, node_id, Work(*numbers)


# A clip that waited on the node behind another one did not cost that time: what the node says counts, if it does.
# Node by node, as the index on the attempts has it.
WORK = """
SELECT (attempt.closed_at AT TIME ZONE 'UTC')::date, node.id,
       count(*) FILTER (WHERE attempt.state = 'succeeded'),
       coalesce(sum(coalesce(attempt.generation_ms,
                             1000 * extract(epoch FROM attempt.closed_at - attempt.posted_at))), 0)::bigint,
       count(*) FILTER (WHERE attempt.state = 'succeeded' AND job.cost > 0)
FROM generation_gpunode node
JOIN generation_jobattempt attempt ON attempt.node_id = node.id
JOIN generation_generationjob job ON job.id = attempt.job_id
WHERE (%(node)s::bigint IS NULL OR node.id = %(node)s::bigint)
      AND attempt.closed_at >= %(first)s AND attempt.closed_at < %(end)s
GROUP BY 1, 2
"""

REFUNDED = """
SELECT count(*)
FROM accounts_credittransaction entry
JOIN generation_jobattempt attempt ON attempt.job_id = entry.reference
WHERE entry.kind = 'refund' AND entry.created_at >= %(first)s
      AND attempt.node_id = %(node)s AND attempt.state = 'succeeded' AND attempt.closed_at >= %(first)s
"""
