"""One person's clips as they are looked through: searched, filtered, and a page at a time."""

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from generation.models import GenerationJob, JobQuerySet


def page_of(
    jobs: "QuerySet[GenerationJob]", *, after: GenerationJob | None, limit: int, order: str
) -> tuple[list[GenerationJob], bool]:
    """At most `limit` jobs beyond `after` by time of creation, and whether there are more. order: `asc` or `desc`."""
    sign, beyond = ("", "gt") if order == "asc" else ("-", "lt")
    if after is not None:
        same_time = Q(created_at=after.created_at, **{f"pk__{beyond}": after.pk})
        jobs = jobs.filter(Q(**{f"created_at__{beyond}": after.created_at}) | same_time)
    rows = list(jobs.order_by(f"{sign}created_at", f"{sign}pk")[: limit + 1])
    return rows[:limit], len(rows) > limit


# Pages by cursor, newest or oldest first: no page shifts when rows come or go.


State, Source = GenerationJob.State, GenerationJob.Source

PAGE_SIZE = 24
MAX_WORDS = 10


@dataclass(frozen=True)
class Filter:
    """What somebody looks for. An unknown state or door is none: an old link still shows the gallery."""

    words: str = ""
    state: str = ""
    door: str = ""

    STATES: ClassVar[dict[str, tuple[Promise, tuple[str, ...]]]] = {
        "making": (_("In the making"), GenerationJob.LIVE),
        "ready": (_("Ready"), (State.COMPLETED,)),
        "failed": (_("Failed"), (State.FAILED,)),
        "canceled": (_("Canceled"), (State.CANCELED,)),
    }
    DOORS: ClassVar[dict[str, Promise]] = {
        Source.WEB.value: _("Web"),
        Source.TELEGRAM.value: _("Telegram"),
        Source.API.value: _("API"),
    }

    @classmethod
    def from_query(cls, query: QueryDict) -> "Filter":
        """From `?q=&state=&door=`. A NUL, which no database text can hold, is in no prompt either."""
        state, door = query.get("state", ""), query.get("door", "")
        return cls(
            words=query.get("q", "").replace("\0", " ").strip()[:200],
            state=state if state in cls.STATES else "",
            door=door if door in cls.DOORS else "",
        )

    @property
    def is_active(self) -> bool:
        return bool(self.words or self.state or self.door)

    def apply(self, jobs: JobQuerySet) -> JobQuerySet:
        """The jobs whose prompt has every word, by any door and in any state unless these are named."""
        for word in self.words.split()[:MAX_WORDS]:
            jobs = jobs.filter(prompt__icontains=word)
        if self.state:
            jobs = jobs.filter(state__in=self.STATES[self.state][1])
        return jobs.filter(source=self.door) if self.door else jobs

    def query(self, *, after: str = "") -> str:
        """The address that shows this again, from the clip named `after` on."""
        wanted = {"q": self.words, "state": self.state, "door": self.door, "after": after}
        return urlencode({name: value for name, value in wanted.items() if value})


@dataclass(frozen=True)
class Page:
    """Some clips, newest first. older: the query that shows those after them, empty when there are none."""

    jobs: list[GenerationJob]
    older: str


def page(jobs: JobQuerySet, wanted: Filter, *, after: GenerationJob | None) -> Page:
    """A page of what is wanted, beginning behind `after`."""
    found, has_more = page_of(wanted.apply(jobs), after=after, limit=PAGE_SIZE, order="desc")
    return Page(jobs=found, older=wanted.query(after=found[-1].public_id) if has_more else "")
