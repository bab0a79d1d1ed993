"""The staff's home page: the state of the service, each number a link to the rows behind it."""

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

from accounts.admin import search
from accounts.models import Approval, AuditRun
from accounts.staff.actor import Actor
from generation.models import DailyStats, GenerationJob, GpuNode, JobAttempt, Report
from generation.staff import stats

State = GenerationJob.State
RECENT = timedelta(days=1)


@dataclass(frozen=True)
class Stat:
    """One number of the page. `alarm`: it needs attention."""

    title: str
    value: str
    href: str
    note: str = ""
    alarm: bool = False


# Stats of apps that `generation` does not know.
_others: list[Callable[[], Stat]] = []


def add_stat(stat: Callable[[], Stat]) -> Callable[[], Stat]:
    """Make a function's stat part of the page."""
    _others.append(stat)
    return stat


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK. The page has no stats for actors who may not see jobs."""
    actor = Actor.of(request)
    context |= {"may_search": search.may_search(actor)}
    if not actor.may("generation.view_generationjob"):
        return context
    days = stats.latest()
    return context | {
        "now_stats": [
            *_queue(),
            _reports(),
            _approvals(),
            _books(),
            _failed_tasks(),
            *(stat() for stat in _others),
        ],
        "day_stats": _work(days),
        "credit_stats": _credits(days),
        "nodes": _nodes(),
        "chart": json.dumps(_chart(days)),
        "chart_options": json.dumps(CHART_OPTIONS),
    }


def _queue() -> list[Stat]:
    found = GenerationJob.objects.filter(state__in=GenerationJob.LIVE).aggregate(
        queued=Count("pk", filter=Q(state=State.QUEUED)),
        made=Count("pk", filter=~Q(state=State.QUEUED)),
        oldest=Now() - Min("created_at", filter=Q(state=State.QUEUED)),
    )
    oldest = found["oldest"]
    waits = f"oldest: {_seconds(oldest.total_seconds())}" if oldest else "empty"
    return [
        Stat("In the queue", str(found["queued"]), _jobs(state__exact=State.QUEUED), waits),
        Stat("Being made", str(found["made"]), _jobs(state__in=f"{State.RUNNING},{State.STORING}")),
    ]


def _work(days: Sequence[DailyStats]) -> list[Stat]:
    today, whole = days[-1], len(days) == stats.DAYS
    midnight, month = _midnight(), _midnight(stats.DAYS - 1)
    completed, failed = sum(row.completed for row in days), sum(row.failed for row in days)
    # Counted for the latest day that is over and settled.
    people = next((row.people_in_month for row in reversed(days) if row.people_in_month is not None), 0)
    return [
        Stat(
            "Success today",
            _percent(stats.success_rate([today])),
            _jobs(state__exact=State.FAILED, finished_at__gte=midnight),
            f"{today.completed} made, {today.failed} failed",
        ),
        Stat(
            "Success, 30 days",
            _percent(stats.success_rate(days)) if whole else "…",
            _jobs(state__exact=State.FAILED, finished_at__gte=month),
            _month(days, f"{completed} made, {failed} failed"),
        ),
        Stat(
            "Median time today",
            _seconds(stats.median_seconds([today])),
            _jobs(state__exact=State.COMPLETED, finished_at__gte=midnight),
            _month(days, f"30 days: {_seconds(stats.median_seconds(days))}"),
        ),
        Stat(
            "Active users today",
            str(today.people),
            _jobs(created_at__gte=midnight),
            _month(days, f"{people} in the 30 days before"),
        ),
    ]


def _credits(days: Sequence[DailyStats]) -> list[Stat]:
    titles = {"granted": "grant", "bought": "purchase", "captured": "capture", "refunded": "refund"}
    month = _midnight(stats.DAYS - 1)
    return [
        Stat(
            f"Credits {name}",
            f"{getattr(days[-1], name):,}",
            _listed("accounts_credittransaction", kind__exact=kind, created_at__gte=month),
            _month(days, f"30 days: {sum(getattr(row, name) for row in days):,}"),
        )
        for name, kind in titles.items()
    ] + [
        Stat(
            "Discounts",
            f"{days[-1].discounts:,}",
            _listed("accounts_auditevent", act__exact="user.limit"),
            _month(days, f"by price factors, 30 days: {sum(row.discounts for row in days):,}"),
        )
    ]


def _month(days: Sequence[DailyStats], text: str) -> str:
    """Show the text about 30 days once all of them are added up."""
    return text if len(days) == stats.DAYS else "30 days: being added up"


def _reports() -> Stat:
    found = Report.objects.filter(outcome="").aggregate(number=Count("pk"), oldest=Now() - Min("created_at"))
    href = _listed("generation_report", outcome__isempty="1")
    waits = f"oldest: {_seconds(found['oldest'].total_seconds())}" if found["oldest"] else "all are settled"
    return Stat("Reports waiting", str(found["number"]), href, waits, alarm=bool(found["number"]))


def _approvals() -> Stat:
    found = Approval.objects.filter(approved=None, created_at__gt=Now() - Approval.VALID).count()
    href = _listed("accounts_approval", approved__isnull="True")
    return Stat("Approvals waiting", str(found), href, "for a second person", alarm=bool(found))


def _books() -> Stat:
    run = AuditRun.objects.first()
    href = _listed("accounts_auditrun")
    if run is None:
        return Stat("The books", "not checked yet", href, "that happens once a day")
    verdict = "right" if not run.found else f"{run.found} wrong"
    return Stat("The books", verdict, href, f"checked {timesince(run.at)} ago", alarm=bool(run.found))


def _failed_tasks() -> Stat:
    failed = Failure.objects.filter(stopped__gt=timezone.now() - RECENT).count()
    return Stat("Failed tasks", str(failed), _listed("django_q_failure"), "in 24 hours", alarm=bool(failed))


def _nodes() -> list[dict[str, Any]]:
    """Make the table of nodes. Attempts are counted by themselves: joined to the nodes, all of them would be read."""
    nodes = list(GpuNode.objects.with_health().annotate(age=Now() - F("last_seen_at")))
    attempts = JobAttempt.objects.filter(node__in=[node.pk for node in nodes]).order_by()
    state, silent = JobAttempt.State, Q(silent_since__isnull=False)
    load = Counter(dict(attempts.filter(state=state.OPEN).values_list("node").annotate(number=Count("pk"))))
    closed = attempts.filter(closed_at__gt=Now() - RECENT)
    # What was taken from a node that hung was canceled, or is open still.
    hung = attempts.filter(silent, state=state.OPEN) | closed.filter(
        silent | Q(job__error_code="timed_out"), state=state.CANCELED
    )
    bad = closed.filter(state__in=[state.FAILED, state.LOST, state.REFUSED])
    done, failed = Counter[int](), Counter[int]()
    for counter, found in ((done, closed.filter(state=state.SUCCEEDED)), (failed, bad), (failed, hung)):
        counter.update(dict(found.values_list("node").annotate(number=Count("pk"))))
    return [_node(node, load[node.pk], done[node.pk], failed[node.pk]) for node in nodes]


def _node(node: Any, load: int, done: int, failed: int) -> dict[str, Any]:
    ended = done + failed
    return {
        "node": node,
        "state": "off" if not node.enabled else "set aside" if node.set_aside_at else node.status,
        "load": f"{load} of {node.slots}",
        "seen": f"{_seconds(node.age.total_seconds())} ago" if node.age is not None else "never",
        "success": f"{_percent(done / ended)} of {ended}" if ended else "-",
        "href": reverse("admin:generation_gpunode_change", args=[node.pk]),
        "attempts_href": _jobs(attempts__node__id__exact=str(node.pk)),
        "alarm": node.enabled and (node.set_aside_at is not None or not node.is_healthy),
    }


def _chart(days: Sequence[DailyStats]) -> dict[str, Any]:
    """Make the data for Chart.js: clips of each day as stacked bars; days that are not added up yet are gaps."""
    rows = {row.day: row for row in days}
    labels = [days[-1].day - timedelta(days=ago) for ago in reversed(range(stats.DAYS))]
    colours = {
        "completed": "var(--color-primary-600)",
        "failed": "var(--color-red-500)",
        "canceled": "var(--color-base-400)",
    }
    return {
        "labels": [f"{day:%d %b}" for day in labels],
        "datasets": [
            {
                "label": name.capitalize(),
                "data": [getattr(rows.get(day), name, None) for day in labels],
                "backgroundColor": colour,
                "stack": "jobs",
            }
            for name, colour in colours.items()
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
