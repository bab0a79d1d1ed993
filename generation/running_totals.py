"""Sums over tables that only ever grow, at the cost of what is new: what lies behind is added up once and kept, in the
database, so that every process and host tells the same and no number ever goes back.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from django.db import connection
from django.db.models import Aggregate, QuerySet

from generation.models import RunningTotal

# Transactions that began before a moment may still be open for so long after it.
SETTLED = timedelta(hours=1)
# What came since is added up each time, until it is so much.
SPAN = timedelta(hours=6)

Totals = Counter[tuple[str, ...]]


def add_up(
    name: str, rows: "QuerySet[Any]", *, moment: str, labels: Sequence[str], number: Aggregate
) -> Totals:
    """`number` of the rows by their labels, all rows there ever were.

    name: what the sum is kept under. moment: the column that says when a row came; its rows never change, and there is
    an index on it.
    """
    kept = RunningTotal.objects.filter(pk=name).first()
    since = rows if kept is None else rows.filter(**{f"{moment}__gte": kept.until})
    totals = _numbers_of(kept)
    totals.update(_sums(since, labels, number))
    settled = _now() - SETTLED
    if kept is None or settled - kept.until > SPAN:
        before = _numbers_of(kept)
        before.update(_sums(since.filter(**{f"{moment}__lt": settled}), labels, number))
        _keep(RunningTotal(name=name, until=settled, numbers=[[*key, n] for key, n in before.items()]), kept)
    return totals


def _now() -> datetime:
    """By PostgreSQL's clock: a moment that a host took for past would hide what came until then."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        [(moment,)] = cursor.fetchall()
    return cast(datetime, moment)


def _sums(rows: "QuerySet[Any]", labels: Sequence[str], number: Aggregate) -> Totals:
    found = rows.order_by().values(*labels).annotate(number=number).values_list(*labels, "number")
    return Counter({tuple(key): value for *key, value in found})


def _numbers_of(kept: RunningTotal | None) -> Totals:
    return Counter({tuple(key): value for *key, value in kept.numbers} if kept else {})


def _keep(new: RunningTotal, old: RunningTotal | None) -> None:
    """Unless somebody else was as quick."""
    if old is None:
        RunningTotal.objects.bulk_create([new], ignore_conflicts=True)
    else:
        RunningTotal.objects.filter(pk=old.pk, until=old.until).update(until=new.until, numbers=new.numbers)
