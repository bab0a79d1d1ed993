"""What happened day by day, in UTC. Days that are over are added up once, in the background (`keep`, which the
reconciler has done every hour), and kept (`DayFigures`), so that the staff's home page takes the same time whatever the
service has behind it. Only the running day, and for an hour the one before, is added up each time it is looked at.
"""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any

from django.db import connection

from generation.models import DayFigures
from generation.staff import days, node_figures

DAYS = 30
# Times are counted in classes, each 5 % wider than the one before, so that medians of many days can be had from sums.
STEP = math.log(1.05)


def latest(number: int = DAYS) -> list[DayFigures]:
    """The last `number` days, the running one included, oldest first; without those that `keep` has yet to add up."""
    now, over = days.today(), days.settled()
    rows = DayFigures.objects.filter(day__gt=now - timedelta(days=number), day__lt=over)
    return [*rows.defer("nodes").order_by("day"), *add_up(over, now + timedelta(days=1))]


def keep(number: int = DAYS) -> None:
    """A task: add up the days that are over and not kept yet. Safe to repeat."""
    over = days.settled()
    wanted = days.between(days.today() - timedelta(days=number - 1), over)
    kept = set(DayFigures.objects.filter(day__in=wanted).values_list("day", flat=True))
    missing = [day for day in wanted if day not in kept]
    if missing:
        fresh = add_up(missing[0], over)
        _count_the_month(fresh[-1])
        DayFigures.objects.bulk_create(fresh, ignore_conflicts=True)
    node_figures.keep(wanted)


def add_up(first: date, end: date) -> list[DayFigures]:
    """From the rows themselves, for each day from `first` up to `end` without it."""
    rows = {day: DayFigures(day=day) for day in days.between(first, end)}
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
    bounds = [days.begin(first), days.begin(end)]
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
