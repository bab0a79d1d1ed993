"""A page of the jobs that have certain words, the newest first, in the same time whether one of a million has them or
all. The index of words knows no order: it gives every job that fits, of which all but a page are thrown away. That is
quick while few fit. When many do, the newest jobs are read one by one instead, until there are enough.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django.core.paginator import Page
from django.db import connection, transaction
from django.db.models import QuerySet

from accounts.admin_pages import MOST_COUNTED, ShortPaginator
from generation.models import GenerationJob
from generation.staff import search

# As the index `job_listed` has it.
ORDER = ("-created_at", "-pk")
# So many of the newest jobs tell whether many fit. To read one takes a hundredth of a millisecond at most.
SAMPLE = 2_000
# With no more than so many of the sample, all that fit are few enough for the index of words.
FEW = 20
# No more are read one by one. So fewer than one in ten fit where these were not enough for all that are counted.
FARTHEST = 10_000


class FoundJobs(ShortPaginator):
    """For a search by words, in the order of the list: by creation, the newest first."""

    object_list: "QuerySet[GenerationJob]"

    @classmethod
    def suits(cls, rows: "QuerySet[Any]") -> bool:
        return search.is_by_words(rows) and rows.query.order_by == ORDER

    @cached_property
    def count(self) -> int:
        """Up to MOST_COUNTED, as in every list."""
        if self._few:
            return len(self._all)
        return MOST_COUNTED if self._since_when(MOST_COUNTED) else super().count

    def page(self, number: int | str) -> "Page[Any]":
        number = self.validate_number(number)
        first, last = (number - 1) * self.per_page, min(number * self.per_page, self.count)
        if self._few:
            found = self.object_list.filter(pk__in=self._all[first:last])
        elif since := self._since_when(last):
            found = self._newer(since)[first:last]
        else:
            found = self.object_list.filter(pk__in=self._by_index(first, last))
        with _without("bitmapscan"):
            return Page(list(found), number, self)

    @cached_property
    def _few(self) -> bool:
        return max(self._fit_since.values(), default=0) <= FEW

    @cached_property
    def _all(self) -> list[UUID]:
        """All that fit, as far as they are counted: so the index is asked once."""
        return self._by_index(0, MOST_COUNTED)

    def _by_index(self, first: int, last: int) -> list[UUID]:
        """From the index of words, which is read whole for it, and put in order."""
        with _without("indexscan"):
            return list(self.object_list.values_list("pk", flat=True)[first:last])

    def _since_when(self, wanted: int) -> datetime | None:
        """A moment since which at least `wanted` fit; None when it is too long ago for one by one."""
        return next((since for since, fit in self._fit_since.items() if fit >= wanted), None)

    @cached_property
    def _fit_since(self) -> dict[datetime, int]:
        """How many fit, as far as they are counted: of the sample, and where that leaves it open, of the farthest."""
        found: dict[datetime, int] = {}
        moments = _moments()
        with _without("bitmapscan"):
            for since in moments:
                found[since] = self._newer(since).order_by()[:MOST_COUNTED].count()
                if not FEW < found[since] < MOST_COUNTED:
                    break
        return found

    def _newer(self, since: datetime) -> "QuerySet[GenerationJob]":
        return self.object_list.filter(created_at__gte=since)


def _moments() -> list[datetime]:
    """Of the last job of the sample and the last that is read, as far as there are that many."""
    jobs = GenerationJob.objects.order_by(*ORDER).values_list("created_at", flat=True)
    sample, farthest = (jobs[number - 1 : number] for number in (SAMPLE, FARTHEST))
    return list(sample.union(farthest, all=True).order_by("-created_at"))


@contextmanager
def _without(way: str) -> Iterator[None]:
    """PostgreSQL takes another way, until the end of the transaction. It would choose wrongly: of words that begin so
    it cannot know how many jobs have them. Without bitmaps it reads job by job, without the others it asks the index.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL enable_{way} = off")
        yield
