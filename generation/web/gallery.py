"""One person's clips as a gallery: searched, filtered, and a page at a time."""

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import QueryDict
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from generation.models import GenerationJob, JobQuerySet

State, Source = GenerationJob.State, GenerationJob.Source

PAGE_SIZE = 24
MAX_WORDS = 10


@dataclass(frozen=True)
class Filter:
    """A search. An unknown state or source filters nothing: an old link still shows the gallery."""

    text: str = ""
    state: str = ""
    source: str = ""

    STATES: ClassVar[dict[str, tuple[Promise, tuple[str, ...]]]] = {
        "making": (_("In the making"), GenerationJob.LIVE),
        "ready": (_("Ready"), (State.COMPLETED,)),
        "failed": (_("Failed"), (State.FAILED,)),
        "canceled": (pgettext_lazy("several videos", "Canceled"), (State.CANCELED,)),
    }
    SOURCES: ClassVar[dict[str, Promise]] = {
        Source.WEB.value: _("Web"),
        Source.TELEGRAM.value: _("Telegram"),
        Source.API.value: _("API"),
    }

    @classmethod
    def from_query(cls, query: QueryDict) -> "Filter":
        """Parse `?q=&state=&door=`. A NUL, which no database text can hold, is in no prompt either."""
        state, source = query.get("state", ""), query.get("door", "")
        return cls(
            text=query.get("q", "").replace("\0", " ").strip()[:200],
            state=state if state in cls.STATES else "",
            source=source if source in cls.SOURCES else "",
        )

    @property
    def is_active(self) -> bool:
        return bool(self.text or self.state or self.source)

    def apply(self, jobs: JobQuerySet) -> JobQuerySet:
        """Select the jobs whose prompt has every word, of any source and in any state unless these are named."""
        for word in self.text.split()[:MAX_WORDS]:
            jobs = jobs.filter(prompt__icontains=word)
        if self.state:
            jobs = jobs.filter(state__in=self.STATES[self.state][1])
        return jobs.filter(source=self.source) if self.source else jobs

    def query(self, *, after: str = "") -> str:
        """Build the query string that shows this again, from the clip named `after` on."""
        fields = {"q": self.text, "state": self.state, "door": self.source, "after": after}
        return urlencode({name: value for name, value in fields.items() if value})


def paginate(
    jobs: "QuerySet[GenerationJob]", *, after: GenerationJob | None = None, limit: int, order: str
) -> tuple[list[GenerationJob], bool]:
    """Return at most `limit` jobs beyond `after` by time of creation, and whether there are more.

    By cursor, so that no page shifts when rows come or go. order: `asc` or `desc`.
    """
    sign, beyond = ("", "gt") if order == "asc" else ("-", "lt")
    if after is not None:
        same_time = Q(created_at=after.created_at, **{f"pk__{beyond}": after.pk})
        jobs = jobs.filter(Q(**{f"created_at__{beyond}": after.created_at}) | same_time)
    rows = list(jobs.order_by(f"{sign}created_at", f"{sign}pk")[: limit + 1])
    return rows[:limit], len(rows) > limit
