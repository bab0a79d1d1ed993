"""What nodes did day by day: days that are over are added up once, in the background (`keep`, which `day_figures` has
done with its own), and kept beside the other figures of the day (`DayFigures.nodes`), so that a node's page takes the
same time however many clips it has made.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.db import connection

from generation.models import DayFigures, GpuNode

# Transactions that began before midnight may still be open for so long after it.
SETTLED = timedelta(hours=1)


def today() -> date:
    return datetime.now(UTC).date()


def settled() -> date:
    """The first day of which something may still become known."""
    return (datetime.now(UTC) - SETTLED).date()


def between(first: date, end: date) -> list[date]:
    """From `first` up to `end` without it."""
    return [first + timedelta(days=number) for number in range((end - first).days)]


def begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


# The calendar of all figures: days in UTC, and when one is over for good.


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
    rows = DayFigures.objects.filter(day__gte=first, day__lt=settled(), nodes__isnull=False)
    kept: dict[date, dict[str, list[int]]] = {row.day: row.nodes or {} for row in rows}
    end = today() + timedelta(days=1)
    fresh = next(day for day in between(first, end) if day not in kept)
    parts = [Work(*nodes.get(str(node.pk), ())) for day, nodes in kept.items() if day < fresh]
    parts += [work for _, _, work in _add_up(fresh, end, node)]
    return sum(parts, start=Work())


def keep_node_figures(wanted: Iterable[date]) -> None:
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
        cursor.execute(REFUNDED, {"first": begin(first), "node": node.pk})
        [(number,)] = cursor.fetchall()
    return int(number)


def _add_up(first: date, end: date, node: GpuNode | None = None) -> Iterator[tuple[date, int, Work]]:
    """From the attempts themselves, up to `end` without it: of all nodes or one, the days on which there was any."""
    with connection.cursor() as cursor:
        bounds = {"first": begin(first), "end": begin(end)}
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


# What happened day by day, in UTC. Days that are over are added up once, in the background (`keep`, which the
# reconciler has done every hour), and kept (`DayFigures`), so that the staff's home page takes the same time whatever
# the
# service has behind it. Only the running day, and for an hour the one before, is added up each time it is looked at.


DAYS = 30
# Times are counted in classes, each 5 % wider than the one before, so that medians of many days can be had from sums.
STEP = math.log(1.05)


def latest(number: int = DAYS) -> list[DayFigures]:
    """The last `number` days, the running one included, oldest first; without those that `keep` has yet to add up."""
    now, over = today(), settled()
    rows = DayFigures.objects.filter(day__gt=now - timedelta(days=number), day__lt=over)
    return [*rows.defer("nodes").order_by("day"), *add_up(over, now + timedelta(days=1))]


def keep(number: int = DAYS) -> None:
    """A task: add up the days that are over and not kept yet. Safe to repeat."""
    over = settled()
    wanted = between(today() - timedelta(days=number - 1), over)
    kept = set(DayFigures.objects.filter(day__in=wanted).values_list("day", flat=True))
    missing = [day for day in wanted if day not in kept]
    if missing:
        fresh = add_up(missing[0], over)
        _count_the_month(fresh[-1])
        DayFigures.objects.bulk_create(fresh, ignore_conflicts=True)
    keep_node_figures(wanted)


def add_up(first: date, end: date) -> list[DayFigures]:
    """From the rows themselves, for each day from `first` up to `end` without it."""
    rows = {day: DayFigures(day=day) for day in between(first, end)}
    times: dict[date, Counter[str]] = {day: Counter() for day in rows}
    for day, state, time, number in _query(ENDED, first, end):
        setattr(rows[day], state, getattr(rows[day], state) + number)
        if time is not None:
            times[day][str(time)] += number
    for day, people in _query(PEOPLE, first, end):
        rows[day].people = people
    for day, *amounts in _query(CREDITS, first, end):
        row = rows[day]
        row.granted, row.bought, row.captured, row.refunded = amounts
    for day, row in rows.items():
        row.times = dict(times[day])
    return list(rows.values())


def _count_the_month(row: DayFigures) -> None:
    first, end = row.day - timedelta(days=DAYS - 1), row.day + timedelta(days=1)
    [(row.people_in_month,)] = _query(PEOPLE_IN_ALL, first, end)


def success_rate(figures: Iterable[DayFigures]) -> float | None:
    """Completed of those that were completed or failed, 0 to 1; None without any."""
    completed, failed = 0, 0
    for row in figures:
        completed, failed = completed + row.completed, failed + row.failed
    return completed / (completed + failed) if completed + failed else None


def median_seconds(figures: Iterable[DayFigures]) -> float | None:
    """From submit to the finished clip, to within 3 %; None without any."""
    counts: Counter[int] = Counter()
    for row in figures:
        counts.update({int(name): number for name, number in row.times.items()})
    left = (counts.total() + 1) // 2
    for time in sorted(counts):
        left -= counts[time]
        if left <= 0:
            return math.exp((time + 0.5) * STEP) / 1000
    return None


def _query(statement: str, first: date, end: date) -> list[tuple[Any, ...]]:
    bounds = [begin(first), begin(end)]
    with connection.cursor() as cursor:
        cursor.execute(statement, bounds)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


# STEP is a number of this module, no input.
ENDED = f"""
SELECT (finished_at AT TIME ZONE 'UTC')::date, state,
       CASE WHEN state = 'completed' THEN
           floor(ln(greatest(1, extract(epoch FROM finished_at - created_at) * 1000)) / {STEP})::int END AS time,
       count(*)
FROM generation_generationjob WHERE finished_at >= %s AND finished_at < %s GROUP BY 1, 2, 3
"""  # noqa: S608

PEOPLE = """
SELECT (created_at AT TIME ZONE 'UTC')::date, count(DISTINCT user_id)
FROM generation_generationjob WHERE created_at >= %s AND created_at < %s GROUP BY 1
"""

PEOPLE_IN_ALL = """
SELECT count(DISTINCT user_id) FROM generation_generationjob WHERE created_at >= %s AND created_at < %s
"""

CREDITS = """
SELECT (created_at AT TIME ZONE 'UTC')::date,
       coalesce(sum(posted_delta) FILTER (WHERE kind = 'grant'), 0),
       coalesce(sum(posted_delta) FILTER (WHERE kind IN ('purchase', 'purchase_refund')), 0),
       coalesce(-sum(posted_delta) FILTER (WHERE kind = 'capture'), 0),
       coalesce(sum(posted_delta) FILTER (WHERE kind = 'refund'), 0)
FROM accounts_credittransaction WHERE created_at >= %s AND created_at < %s GROUP BY 1
"""
