"""Statistics by day (UTC), of the service and of each node, for the staff's pages.

Days that are over are added up once, in the background (`keep`, a task that the reconciler queues every hour), and kept
in DailyStats, so that a page takes the same time however many jobs there are. Only the running day, and for an hour the
one before, is added up at each view.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection

from generation.models import DailyStats, GpuNode

DAYS = 30
# Transactions that began before midnight may still be open for so long after it.
SETTLED = timedelta(hours=1)
# Times are counted in classes, each 5 % wider than the one before, so that medians of many days can be had from sums.
STEP = math.log(1.05)


@dataclass(frozen=True)
class NodeStats:
    """The last 30 days of a node, the running one included.

    clips: finished. hours: spent on attempts, failed ones included. cost_per_clip: in money; None without clips or a
    cost per hour. refund_rate: of the clips that were charged, 0 to 1; None without any.
    """

    clips: int
    hours: float
    cost_per_clip: Decimal | None
    refund_rate: float | None


def latest() -> list[DailyStats]:
    """Read the last 30 days, the running one included, oldest first; without those that `keep` has yet to add up."""
    now, over = today(), settled()
    rows = DailyStats.objects.filter(day__gt=now - timedelta(days=DAYS), day__lt=over)
    return [*rows.defer("nodes").order_by("day"), *_add_up(over, now + timedelta(days=1))]


def keep() -> None:
    """Add up, as a task, the days that are over and not kept yet. Safe to repeat."""
    over = settled()
    wanted = _days(today() - timedelta(days=DAYS - 1), over)
    kept = set(DailyStats.objects.filter(day__in=wanted).values_list("day", flat=True))
    missing = [day for day in wanted if day not in kept]
    if missing:
        fresh = _add_up(missing[0], over)
        newest = fresh[-1]
        [(newest.people_in_month,)] = _query(PEOPLE_IN_ALL, newest.day - timedelta(days=DAYS - 1), over)
        DailyStats.objects.bulk_create(fresh, ignore_conflicts=True)
    bare = list(DailyStats.objects.filter(day__in=wanted, nodes__isnull=True).order_by("day"))
    if bare:
        _keep_work_of_nodes(bare)


def of_node(node: GpuNode) -> NodeStats:
    """Add up what a node did and what it cost."""
    first = today() - timedelta(days=DAYS - 1)
    clips, milliseconds, charged = _work_since(first, node)
    hours, cost, rate = milliseconds / 3_600_000, None, None
    if node.cost_per_hour is not None and clips:
        cost = (node.cost_per_hour * Decimal(hours) / clips).quantize(Decimal("0.0001"))
    if charged:
        [(refunded,)] = _query(REFUNDED, first, today(), node)
        rate = refunded / charged
    return NodeStats(clips=clips, hours=hours, cost_per_clip=cost, refund_rate=rate)


def success_rate(days: Iterable[DailyStats]) -> float | None:
    """Completed of those that were completed or failed, 0 to 1; None without any."""
    completed, failed = 0, 0
    for row in days:
        completed, failed = completed + row.completed, failed + row.failed
    return completed / (completed + failed) if completed + failed else None


def median_seconds(days: Iterable[DailyStats]) -> float | None:
    """Estimate the median time from submit to the finished clip, to within 3 %; None without any."""
    counts: Counter[int] = Counter()
    for row in days:
        counts.update({int(name): number for name, number in row.times.items()})
    left = (counts.total() + 1) // 2
    for duration in sorted(counts):
        left -= counts[duration]
        if left <= 0:
            return math.exp((duration + 0.5) * STEP) / 1000
    return None


def today() -> date:
    return datetime.now(UTC).date()


def settled() -> date:
    """Find the first day that is not over for good: transactions of it may still be open."""
    return (datetime.now(UTC) - SETTLED).date()


def _days(first: date, end: date) -> list[date]:
    """List the days from `first` up to `end` without it."""
    return [first + timedelta(days=number) for number in range((end - first).days)]


def _add_up(first: date, end: date) -> list[DailyStats]:
    """Add up each day from `first` up to `end` without it, from jobs and entries themselves."""
    rows = {day: DailyStats(day=day) for day in _days(first, end)}
    times: dict[date, Counter[str]] = {day: Counter() for day in rows}
    for day, state, duration, number, discounts in _query(ENDED, first, end):
        rows[day].discounts += discounts
        setattr(rows[day], state, getattr(rows[day], state) + number)
        if duration is not None:
            times[day][str(duration)] += number
    for day, people in _query(PEOPLE, first, end):
        rows[day].people = people
    for day, *amounts in _query(CREDITS, first, end):
        row = rows[day]
        row.granted, row.bought, row.captured, row.refunded = amounts
    for day, row in rows.items():
        row.times = dict(times[day])
    return list(rows.values())


def _keep_work_of_nodes(days: list[DailyStats]) -> None:
    """Add the work of every node to these days, which are in order."""
    found: dict[date, dict[str, list[int]]] = {row.day: {} for row in days}
    for day, node_id, *numbers in _query(WORK, days[0].day, days[-1].day + timedelta(days=1)):
        found.setdefault(day, {})[str(node_id)] = numbers
    for row in days:
        row.nodes = found[row.day]
    DailyStats.objects.bulk_update(days, ["nodes"])


def _work_since(first: date, node: GpuNode) -> list[int]:
    """Sum up clips, milliseconds and charged clips of a node: of the kept days and, after these, of the attempts."""
    rows = DailyStats.objects.filter(day__gte=first, day__lt=settled(), nodes__isnull=False)
    kept = {row.day: (row.nodes or {}).get(str(node.pk), [0, 0, 0]) for row in rows}
    end = today() + timedelta(days=1)
    fresh = next(day for day in _days(first, end) if day not in kept)
    parts = [numbers for day, numbers in kept.items() if day < fresh]
    parts += [numbers for _, _, *numbers in _query(WORK, fresh, end, node)]
    return [sum(part[column] for part in parts) for column in range(3)]


def _query(statement: str, first: date, end: date, node: GpuNode | None = None) -> list[tuple[Any, ...]]:
    """Read the rows of a statement about the days from `first` up to `end` without it, of all nodes or one."""
    parameters = {
        "first": datetime.combine(first, time.min, UTC),
        "end": datetime.combine(end, time.min, UTC),
        "node": node.pk if node else None,
    }
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


# STEP is a number of this module, no input.
ENDED = f"""
SELECT (finished_at AT TIME ZONE 'UTC')::date, state,
       CASE WHEN state = 'completed' THEN
           floor(ln(greatest(1, extract(epoch FROM finished_at - created_at) * 1000)) / {STEP})::int END AS duration,
       count(*), coalesce(sum(discount) FILTER (WHERE state = 'completed'), 0)
FROM generation_generationjob WHERE finished_at >= %(first)s AND finished_at < %(end)s GROUP BY 1, 2, 3
"""  # noqa: S608

PEOPLE = """
SELECT (created_at AT TIME ZONE 'UTC')::date, count(DISTINCT user_id)
FROM generation_generationjob WHERE created_at >= %(first)s AND created_at < %(end)s GROUP BY 1
"""

PEOPLE_IN_ALL = """
SELECT count(DISTINCT user_id) FROM generation_generationjob WHERE created_at >= %(first)s AND created_at < %(end)s
"""

CREDITS = """
SELECT (created_at AT TIME ZONE 'UTC')::date,
       coalesce(sum(posted_delta) FILTER (WHERE kind = 'grant'), 0),
       coalesce(sum(posted_delta) FILTER (WHERE kind IN ('purchase', 'purchase_refund')), 0),
       coalesce(-sum(posted_delta) FILTER (WHERE kind = 'capture'), 0),
       coalesce(sum(posted_delta) FILTER (WHERE kind = 'refund'), 0)
FROM accounts_credittransaction WHERE created_at >= %(first)s AND created_at < %(end)s GROUP BY 1
"""

# Clips, milliseconds and charged clips, of all nodes or one, on the days with any work. A clip that waited on the node
# behind another one did not cost that time: the node's own measure counts, where there is one. Node by node, as the
# index on the attempts has it.
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

# Looked for among the refunds, which are few beside the clips, and none of which is older than its clip.
REFUNDED = """
SELECT count(*)
FROM accounts_credittransaction entry
JOIN generation_jobattempt attempt ON attempt.job_id = entry.reference
WHERE entry.kind = 'refund' AND entry.created_at >= %(first)s
      AND attempt.node_id = %(node)s AND attempt.state = 'succeeded' AND attempt.closed_at >= %(first)s
"""
