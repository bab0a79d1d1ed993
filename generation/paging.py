"""Pages by cursor, newest or oldest first: no page shifts when rows come or go."""

from django.db.models import Q, QuerySet

from generation.models import GenerationJob


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
