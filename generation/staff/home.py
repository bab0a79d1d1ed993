"""The staff's home page: how things stand, each figure a link to the rows behind it."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, F, Min, Q
from django.db.models.functions import Now
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.timesince import timesince
from django_q.models import Failure

from accounts.models import AuditRun
from accounts.staff.actor import Actor
from generation.models import DayFigures, GenerationJob, GpuNode, JobAttempt
from generation.staff import stats

State = GenerationJob.State
RECENT = timedelta(days=1)


@dataclass(frozen=True)
class Card:
    """One figure: what it is, what it says, where its rows are; `alarm` when somebody should look."""

    title: str
    value: str
    href: str
    note: str = ""
    alarm: bool = False


@dataclass(frozen=True)
class NodeLine:
    """A node as the home page shows it."""

    node: GpuNode
    state: str
    load: str
    seen: str
    success: str
    href: str
    attempts_href: str
    alarm: bool


# Figures of apps that `generation` does not know.
_others: list[Callable[[], Card]] = []


def add_card(card: Callable[[], Card]) -> Callable[[], Card]:
    """Make a function's card part of the page."""
    _others.append(card)
    return card


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK. Who may not see jobs sees no figures."""
    if not Actor.of(request).may("generation.view_generationjob"):
        return context
    figures = stats.latest()
    return context | {
        "now_cards": [*_queue(), _audit(), _failed_tasks(), *(card() for card in _others)],
        "day_cards": _work(figures),
        "credit_cards": _credits(figures),
        "nodes": _nodes(),
        "chart": json.dumps(_chart(figures)),
        "chart_options": json.dumps(CHART_OPTIONS),
    }


def _queue() -> list[Card]:
    found = GenerationJob.objects.filter(state__in=GenerationJob.LIVE).aggregate(
        queued=Count("pk", filter=Q(state=State.QUEUED)),
        made=Count("pk", filter=~Q(state=State.QUEUED)),
        oldest=Now() - Min("created_at", filter=Q(state=State.QUEUED)),
    )
    oldest = found["oldest"]
    waits = _seconds(oldest.total_seconds()) if oldest else "nobody waits"
    return [
        Card("In the queue", str(found["queued"]), _jobs(state__exact=State.QUEUED), f"oldest: {waits}"),
        Card("Being made", str(found["made"]), _jobs(state__in=f"{State.RUNNING},{State.STORING}")),
    ]


def _work(figures: Sequence[DayFigures]) -> list[Card]:
    today = figures[-1]
    midnight, month = _midnight(), _midnight(stats.DAYS - 1)
    return [
        Card(
            "Success today",
            _percent(stats.success_rate([today])),
            _jobs(state__exact=State.FAILED, finished_at__gte=midnight),
            f"{today.completed} made, {today.failed} failed",
        ),
        Card(
            "Success, 30 days",
            _percent(stats.success_rate(figures)) if _whole(figures) else "…",
            _jobs(state__exact=State.FAILED, finished_at__gte=month),
            _month(
                figures,
                f"{sum(row.completed for row in figures)} made, {sum(row.failed for row in figures)} failed",
            ),
        ),
        Card(
            "Median time today",
            _seconds(stats.median_seconds([today])),
            _jobs(state__exact=State.COMPLETED, finished_at__gte=midnight),
            _month(figures, f"30 days: {_seconds(stats.median_seconds(figures))}"),
        ),
        Card(
            "Active users today",
            str(today.people),
            _jobs(created_at__gte=midnight),
            _month(figures, f"{_people_in_month(figures)} in the 30 days before"),
        ),
    ]


def _credits(figures: Sequence[DayFigures]) -> list[Card]:
    titles = {"granted": "grant", "bought": "purchase", "captured": "capture", "refunded": "refund"}
    return [
        Card(
            f"Credits {name}",
            f"{getattr(figures[-1], name):,}",
            _listed(
                "accounts_credittransaction",
                kind__exact=kind,
                created_at__gte=_midnight(stats.DAYS - 1),
            ),
            _month(figures, f"30 days: {sum(getattr(row, name) for row in figures):,}"),
        )
        for name, kind in titles.items()
    ]


def _whole(figures: Sequence[DayFigures]) -> bool:
    return len(figures) == stats.DAYS


def _month(figures: Sequence[DayFigures], words: str) -> str:
    """What is said of 30 days, once all of them are added up."""
    return words if _whole(figures) else "30 days: being added up"


def _people_in_month(figures: Sequence[DayFigures]) -> int:
    """As counted for the latest day that is over and settled."""
    known = (row.people_in_month for row in reversed(figures) if row.people_in_month is not None)
    return next(known, 0)


def _audit() -> Card:
    run = AuditRun.objects.first()
    href = _listed("accounts_auditrun")
    if run is None:
        return Card("The books", "not checked yet", href, "that happens once a day")
    verdict = "right" if not run.found else f"{run.found} wrong"
    return Card("The books", verdict, href, f"checked {timesince(run.at)} ago", alarm=bool(run.found))


def _failed_tasks() -> Card:
    failed = Failure.objects.filter(stopped__gt=timezone.now() - RECENT).count()
    return Card("Failed tasks", str(failed), _listed("django_q_failure"), "in 24 hours", alarm=bool(failed))


def _nodes() -> list[NodeLine]:
    """Attempts are counted by themselves, open ones and those of a day: joined to the nodes, all would be read."""
    healthy = set(GpuNode.objects.healthy().values_list("pk", flat=True))
    nodes = list(GpuNode.objects.annotate(age=Now() - F("last_seen_at")))
    attempts = JobAttempt.objects.filter(node__in=[node.pk for node in nodes]).order_by()
    held = attempts.filter(state=JobAttempt.State.OPEN).values("node").annotate(number=Count("pk"))
    load = Counter({row["node"]: row["number"] for row in held})
    closed = (
        attempts.filter(closed_at__gt=Now() - RECENT).values("node", "state").annotate(number=Count("pk"))
    )
    counts = Counter({(row["node"], row["state"]): row["number"] for row in closed})
    return [_line(node, healthy=node.pk in healthy, load=load[node.pk], counts=counts) for node in nodes]


def _line(node: Any, *, healthy: bool, load: int, counts: Counter[tuple[int, str]]) -> NodeLine:
    done = counts[node.pk, JobAttempt.State.SUCCEEDED]
    bad = counts[node.pk, JobAttempt.State.FAILED] + counts[node.pk, JobAttempt.State.LOST]
    state = "off" if not node.enabled else "set aside" if node.set_aside_at else node.status
    return NodeLine(
        node=node,
        state=state,
        load=f"{load} of {node.slots}",
        seen=f"{_seconds(node.age.total_seconds())} ago" if node.age is not None else "never",
        success=f"{_percent(done / (done + bad))} of {done + bad}" if done + bad else "-",
        href=reverse("admin:generation_gpunode_change", args=[node.pk]),
        attempts_href=_jobs(attempts__node__id__exact=str(node.pk)),
        alarm=node.enabled and (node.set_aside_at is not None or not healthy),
    )


def _chart(figures: Sequence[DayFigures]) -> dict[str, Any]:
    """For Chart.js: clips of each day as stacked bars; days that are not added up yet are gaps."""
    rows = {row.day: row for row in figures}
    today = figures[-1].day
    days = [today - timedelta(days=ago) for ago in reversed(range(stats.DAYS))]
    return {
        "labels": [f"{day:%d %b}" for day in days],
        "datasets": [
            {
                "label": name.capitalize(),
                "data": [getattr(rows.get(day), name, None) for day in days],
                "backgroundColor": colour,
                "stack": "jobs",
            }
            for name, colour in (
                ("completed", "var(--color-primary-600)"),
                ("failed", "var(--color-red-500)"),
                ("canceled", "var(--color-base-400)"),
            )
        ],
    }


CHART_OPTIONS = {
    "responsive": True,
    "maintainAspectRatio": False,
    "scales": {
        "x": {"stacked": True},
        "y": {"stacked": True, "beginAtZero": True, "ticks": {"precision": 0}},
    },
    "plugins": {"legend": {"display": True, "position": "bottom"}},
}


def _jobs(**filters: str) -> str:
    return _listed("generation_generationjob", **filters)


def _listed(model: str, **filters: str) -> str:
    page = reverse(f"admin:{model}_changelist")
    return f"{page}?{urlencode(filters)}" if filters else page


def _midnight(days_ago: int = 0) -> str:
    return f"{datetime.now(UTC).date() - timedelta(days=days_ago)} 00:00:00+00:00"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
