"""Search for jobs by words of the prompt or the error, and pages of what it finds, the newest first.

PostgreSQL's own text search answers it from a GIN index (`job_words`), which needs no extension; parts within a word
would want pg_trgm, which the embedded server does not bring. The index knows no order: it gives every job that fits, of
which all but a page are thrown away. That is quick while few fit. When many do, the newest jobs are read one by one
instead, until there are enough, so that a page takes the same time whether one of a million jobs fits or all.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib.postgres.search import SearchQuery, SearchVector
from django.core.paginator import Page
from django.db import connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Lower

from accounts.admin.base import MOST_COUNTED, ShortPaginator
from generation.models import GenerationJob

WORD = re.compile(r"[^\W_]+")
# 32 hex digits, also as a UUID, wherever they stand: in a public id, an address, the name of a file or in a log.
ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE)
# The expression and the order of the indexes `job_words` and `job_listed`, to the letter.
VECTOR = SearchVector(Lower("prompt"), Lower("error_message"), config="simple")
ORDER = ("-created_at", "-pk")
# The newest jobs tell whether many fit. To read one takes a hundredth of a millisecond at most.
SAMPLE = 2_000
# With no more than so many of the sample, all that fit are few enough for the index.
FEW = 20
# No more are read one by one: where these are not enough for all that are counted, fewer than one in ten fit.
FARTHEST = 10_000


def ids_in(text: str) -> set[UUID]:
    """Read the ids of jobs, or of attempts, that stand in a text."""
    return {UUID(each) for each in ID.findall(text)}


def with_words(jobs: "QuerySet[GenerationJob]", text: str) -> "QuerySet[GenerationJob]":
    """Select those of `jobs` that have every word of `text`, or words that begin so, in prompt or error."""
    words = WORD.findall(text.lower())
    if not words:
        return jobs.none()
    query = SearchQuery(" & ".join(f"{word}:*" for word in words), config="simple", search_type="raw")
    return jobs.alias(words=VECTOR).filter(words=query)


def is_by_words(rows: "QuerySet[Any]") -> bool:
    """Tell whether FoundJobs suits these rows: a search by words, in the order of the list."""
    return "words" in rows.query.annotations and rows.query.order_by == ORDER


class FoundJobs(ShortPaginator):
    """Pages of a search by words."""

    object_list: "QuerySet[GenerationJob]"

    @cached_property
    def count(self) -> int:
        """Count those that fit, up to MOST_COUNTED as in every list."""
        if len(self._newest) <= FEW:
            return len(self._all)
        return MOST_COUNTED if len(self._newest) == MOST_COUNTED else super().count

    def page(self, number: int | str) -> "Page[Any]":
        number = self.validate_number(number)
        first, last = (number - 1) * self.per_page, min(number * self.per_page, self.count)
        ids = self._newest if last <= len(self._newest) else self._all
        with _without("bitmapscan"):
            return Page(list(self.object_list.filter(pk__in=ids[first:last])), number, self)

    @cached_property
    def _newest(self) -> list[UUID]:
        """Find what fits among the sample of the newest jobs and, where that leaves it open, among the farthest."""
        moments = GenerationJob.objects.order_by(*ORDER).values_list("created_at", flat=True)
        found: list[UUID] = []
        with _without("bitmapscan"):
            for depth in (SAMPLE, FARTHEST):
                for since in moments[depth - 1 : depth]:
                    newer = self.object_list.filter(created_at__gte=since)
                    found = list(newer.values_list("pk", flat=True)[:MOST_COUNTED])
                if not FEW < len(found) < MOST_COUNTED:
                    break
        return found

    @cached_property
    def _all(self) -> list[UUID]:
        """Find all that fit, up to MOST_COUNTED, from the index of words, which is read whole for it."""
        with _without("indexscan"):
            return list(self.object_list.values_list("pk", flat=True)[:MOST_COUNTED])


@contextmanager
def _without(scan: str) -> Iterator[None]:
    """Forbid PostgreSQL a kind of scan until the end of the transaction.

    It would choose wrongly, as it cannot know how many jobs have words that begin so. Without bitmaps it reads job by
    job, without index scans it asks the index of words.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL enable_{scan} = off")
        yield
