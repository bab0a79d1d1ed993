"""`/healthz`, `/metrics` for Prometheus, the web manifest, `robots.txt` and `security.txt`.

The figures of `/metrics` are read from the database when it is asked: every process and host gives the same answer,
because nothing is counted in memory. What grows for ever is not counted anew each time (`catalog.add_up`). Names and
meanings are in docs/operations.md.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from ipaddress import ip_address

import psycopg
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.db.models import Count, F, Max, Min, QuerySet, Sum
from django.db.models.functions import Abs, Greatest, Now
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from accounts.context_processors import contact_url
from accounts.models import CreditAccount, CreditTransaction
from generation.database import DATABASE_AWAY, RETRY_AFTER, hears_notifications
from generation.jobs import catalog, queue
from generation.models import GenerationJob, GpuNode, JobAttempt, UnclaimedFile
from telegram_bot.models import BotTraffic, JobMessage, TelegramUpdate
from telegram_bot.sending.client import UPDATE

logger = logging.getLogger(__name__)

State = GenerationJob.State


class Hearing:
    """Whether notifications arrive, remembered for a while: probes come often, and the answer takes two connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works, self._until = False, 0.0

    def works(self) -> bool:
        with self._lock:
            if time.monotonic() >= self._until:
                self._works = hears_notifications()
                self._until = time.monotonic() + (60 if self._works else 10)
            return self._works


_hearing = Hearing()


@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """Answer 200 when the database answers and a NOTIFY arrives, else 503.

    The age of a GPU node's last answer shows a dead reconciler.
    """
    try:
        heard = GpuNode.objects.aggregate(ago=Now() - Max("last_seen_at"))["ago"]
        if not _hearing.works():
            silent = {"status": "failed", "database": "ok", "notifications": "failed"}
            return JsonResponse(silent, status=503, headers=RETRY_AFTER)
    except (DatabaseError, InterfaceError, psycopg.Error) as error:
        logger.error("the database does not answer: %s", error)
        return JsonResponse({"status": "failed", "database": "failed"}, status=503, headers=RETRY_AFTER)
    age = None if heard is None else round(heard.total_seconds(), 1)
    body = {"status": "ok", "database": "ok", "notifications": "ok", "node_heard_seconds_ago": age}
    return JsonResponse(body)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Requires METRICS_TOKEN; without one, served to localhost only; 404 otherwise."""
    if not _may_read(request):
        return HttpResponse("There is nothing here.\n", status=404, content_type="text/plain")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PlatformCollector())
    try:
        return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
    except DATABASE_AWAY as error:
        logger.error("no metrics, the database does not answer: %s", str(error).strip())
        message, kind = "The database does not answer.\n", "text/plain"
        return HttpResponse(message, status=503, content_type=kind, headers=RETRY_AFTER)


def _may_read(request: HttpRequest) -> bool:
    if settings.METRICS_TOKEN:
        header = request.META.get("HTTP_AUTHORIZATION", "")
        return constant_time_compare(header, f"Bearer {settings.METRICS_TOKEN}")
    # Behind a proxy every request comes from the proxy's address, which is often this machine.
    if settings.BEHIND_PROXY or {"HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR"} & set(request.META):
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


class PlatformCollector(Collector):
    """The figures of the platform, one subject a method."""

    def collect(self) -> Iterable[Metric]:
        yield from self.jobs()
        yield from self.nodes()
        yield from self.credits()
        yield from self.deliveries()
        yield from self.bot()
        yield from self.background()

    def jobs(self) -> Iterator[Metric]:
        live = GaugeMetricFamily("videoplatform_jobs", "Jobs that have not ended.", labels=["state"])
        unfinished = GenerationJob.objects.filter(finished_at=None, state__in=GenerationJob.LIVE).order_by()
        numbers = dict(unfinished.values_list("state").annotate(number=Count("pk")))
        for state in GenerationJob.LIVE:
            live.add_metric([state], numbers.get(state, 0))
        meaning = "Jobs that have ended, by state and error code."
        ended = CounterMetricFamily("videoplatform_jobs_ended", meaning, labels=["state", "code"])
        totals = catalog.add_up(
            "jobs_ended",
            GenerationJob.objects.filter(finished_at__isnull=False),
            moment="finished_at",
            labels=["state", "error_code"],
            number=Count("pk"),
        )
        for labels, number in totals.items():
            ended.add_metric(labels, number)
        yield live
        yield ended
        yield _gauge(
            "videoplatform_queue_oldest_seconds",
            "How long the job that was queued first has waited; 0 without any.",
            _oldest(GenerationJob.objects.filter(state=State.QUEUED), "created_at"),
        )

    def nodes(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"videoplatform_node_{name}", meaning, labels=["node"])
            for name, meaning in (
                ("ready", "1: it answered lately and takes work."),
                ("enabled", "1: staff have it switched on."),
                ("set_aside", "1: it failed too often and gets no jobs."),
                ("open_attempts", "Jobs it holds."),
                ("silent_attempts", "Jobs of it that it does not answer for."),
                ("failures_in_a_row", "Attempts in a row that came to nothing."),
                ("heard_seconds", "Since it was last heard of."),
            )
        }
        ready = set(GpuNode.objects.healthy().values_list("pk", flat=True))
        is_open = JobAttempt.objects.filter(state=JobAttempt.State.OPEN).order_by()
        counts = is_open.values_list("node").annotate(held=Count("pk"), silent=Count("silent_since"))
        attempts = {node: numbers for node, *numbers in counts}
        for node in GpuNode.objects.annotate(age=Now() - F("last_seen_at")):
            held, silent = attempts.get(node.pk, (0, 0))
            add = {name: family.add_metric for name, family in families.items()}
            add["ready"]([node.name], node.pk in ready)
            add["enabled"]([node.name], node.enabled)
            add["set_aside"]([node.name], node.set_aside_at is not None)
            add["open_attempts"]([node.name], held)
            add["silent_attempts"]([node.name], silent)
            add["failures_in_a_row"]([node.name], node.consecutive_failures)
            if node.age is not None:
                add["heard_seconds"]([node.name], node.age.total_seconds())
        yield from families.values()

    def credits(self) -> Iterator[Metric]:
        meaning = "Credits in entries of the ledger, by kind."
        moved = CounterMetricFamily("videoplatform_credits_moved", meaning, labels=["kind"])
        kinds = catalog.add_up(
            "credits_moved",
            CreditTransaction.objects.all(),
            moment="created_at",
            labels=["kind"],
            number=Sum(Greatest(Abs("posted_delta"), Abs("held_delta"))),
        )
        for labels, number in kinds.items():
            moved.add_metric(labels, number)
        yield moved
        totals = CreditAccount.objects.aggregate(posted=Sum("posted"), held=Sum("held"))
        yield _gauge("videoplatform_credits_owned", "Credits in all wallets.", totals["posted"] or 0)
        yield _gauge("videoplatform_credits_held", "Credits held for live jobs.", totals["held"] or 0)

    def deliveries(self) -> Iterator[Metric]:
        meaning = "Results for Telegram, by state."
        messages = GaugeMetricFamily("videoplatform_telegram_messages", meaning, labels=["state"])
        numbers = dict(JobMessage.objects.order_by().values_list("state").annotate(number=Count("pk")))
        for state in JobMessage.State.values:
            messages.add_metric([state], numbers.get(state, 0))
        yield messages
        late = JobMessage.objects.filter(state=JobMessage.State.PENDING, job__finished_at__isnull=False)
        yield _gauge(
            "videoplatform_telegram_backlog", "Finished jobs whose result is not out yet.", late.count()
        )
        yield _gauge(
            "videoplatform_telegram_backlog_oldest_seconds",
            "How long ago the first of them finished; 0 without any.",
            _oldest(late, "job__finished_at"),
        )

    def bot(self) -> Iterator[Metric]:
        """Yield sums of seconds and numbers: their rates give the mean time of a request, and of an update's answer."""
        families = {
            name: CounterMetricFamily(f"videoplatform_telegram_{name}", meaning, labels=["outcome", *more])
            for name, meaning, more in (
                ("requests", "Requests to Telegram, by method.", ["method"]),
                ("request_seconds", "What they took.", ["method"]),
                ("updates", "Updates that were settled.", []),
                ("update_seconds", "From an update's arrival until it was settled.", []),
            )
        }
        for row in BotTraffic.objects.all():
            name, more = ("update", []) if row.what == UPDATE else ("request", [row.what])
            families[f"{name}s"].add_metric([row.outcome, *more], row.number)
            families[f"{name}_seconds"].add_metric([row.outcome, *more], row.seconds)
        yield from families.values()
        waiting = TelegramUpdate.objects.filter(state=TelegramUpdate.State.RECEIVED)
        yield _gauge(
            "videoplatform_telegram_update_lag_seconds",
            "How long the first update that is not settled has waited; 0 without any.",
            _oldest(waiting, "received_at"),
        )

    def background(self) -> Iterator[Metric]:
        yield _gauge("videoplatform_tasks", "Tasks that a worker has not done.", queue.waiting())
        overdue = UnclaimedFile.objects.filter(remove_after__lt=Now()).count()
        yield _gauge("videoplatform_files_to_remove", "Stored files that should be gone.", overdue)
        heard: timedelta | None = GpuNode.objects.aggregate(age=Now() - Max("last_seen_at"))["age"]
        if heard is not None:
            meaning = "Since any node was heard of: when it grows, the reconciler or all nodes are down."
            yield _gauge("videoplatform_reconciler_heard_seconds", meaning, heard.total_seconds())


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _oldest(rows: "QuerySet", moment: str) -> float:
    """Return the seconds since the first of these moments; 0 when there are none."""
    age: timedelta | None = rows.aggregate(age=Now() - Min(moment))["age"]
    return 0.0 if age is None else max(0.0, age.total_seconds())


@require_safe
def manifest(request: HttpRequest) -> JsonResponse:
    """Describe the site to a phone that puts it among its apps."""
    icons = [
        {
            "src": static(f"icon-{size}.png"),
            "sizes": f"{size}x{size}",
            "type": "image/png",
            "purpose": purpose,
        }
        for size in (192, 512)
        for purpose in ("any", "maskable")
    ]
    facts = {
        "name": "Video platform",
        "short_name": _("Videos"),
        "description": _("Write a sentence, get a video. Credits are charged only for a clip that plays."),
        "start_url": reverse("dashboard"),
        "display": "standalone",
        "background_color": "#fafaf9",
        "theme_color": "#5244d6",
        "icons": icons,
    }
    return JsonResponse(facts, content_type="application/manifest+json")


@require_safe
def robots(request: HttpRequest) -> HttpResponse:
    """Keep crawlers off what needs an account. Pages of shared videos forbid it themselves, which has to be read."""
    paths = ("/accounts/", "/admin/", "/telegram/", "/v1/")
    lines = ["User-agent: *", "Allow: /v1/docs", *(f"Disallow: {path}" for path in paths), ""]
    return HttpResponse("\n".join(lines), content_type="text/plain")


@require_safe
def security_txt(request: HttpRequest) -> HttpResponse:
    """Tell where to report a hole (RFC 9116); 404 without a SUPPORT_CONTACT that makes an address."""
    if not (contact := contact_url(settings.SUPPORT_CONTACT)):
        raise Http404
    until = timezone.now() + timedelta(days=90)
    address = f"{settings.SITE_URL}{request.path}"
    text = f"Contact: {contact}\nExpires: {until:%Y-%m-%dT%H:%M:%SZ}\nCanonical: {address}\n"
    return HttpResponse(text, content_type="text/plain; charset=utf-8")
