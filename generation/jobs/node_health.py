"""The health of the GPU nodes: their answers about themselves, and the circuit breaker.

A node that fails again and again is set aside, and a canary clip decides when it is back. Without that, a node that
fails fast would win every job, because it is always the least loaded.
"""

import logging
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from itertools import chain, count

from django.conf import settings
from django.db.models import F, Max, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce, Greatest, Now

from generation.jobs import locks
from generation.models import CanaryRun, GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeEndpoint, NodeError, NodeHealth, detect_protocol, open_client

logger = logging.getLogger(__name__)

ENVIRONMENT_NODE = "default"
# Each failed canary doubles the pause, up to this many times NODE_TRIAL_SECONDS.
LONGEST_PAUSE = 16
# How long a node's refusals are held against it.
REFUSALS_SECONDS = 24 * 3600.0
NEVER = datetime.min.replace(tzinfo=UTC)


def sync_environment_node() -> GpuNode | None:
    """Make the node that VIDEO_API_URL names a row, or follow a changed address; None when it is not set."""
    if not settings.VIDEO_API_URL:
        return None
    named = {"base_url": settings.VIDEO_API_URL, "api_key": settings.VIDEO_API_KEY, "from_environment": True}
    known = GpuNode.objects.filter(base_url=settings.VIDEO_API_URL).first()
    node = known or GpuNode.objects.filter(from_environment=True).first()
    if node is None:
        taken = set(GpuNode.objects.values_list("name", flat=True))
        names = chain([ENVIRONMENT_NODE], (f"{ENVIRONMENT_NODE}-{number}" for number in count(2)))
        return GpuNode.objects.create(name=next(name for name in names if name not in taken), **named)
    moved = {} if known else {"status": "unknown", "detected_protocol": "", "last_seen_at": None}
    GpuNode.objects.filter(pk=node.pk).update(**named, **moved)
    others = GpuNode.objects.filter(from_environment=True).exclude(pk=node.pk)
    others.update(from_environment=False, enabled=False)
    node.refresh_from_db()
    return node


def endpoint_of(node: GpuNode, *, protocol: str | None = None) -> NodeEndpoint:
    return NodeEndpoint(
        base_url=node.base_url,
        api_key=node.api_key,
        protocol=protocol or node.effective_protocol,
        file_hosts=tuple(node.file_hosts.replace(",", " ").split()),
    )


async def examine(node: GpuNode) -> NodeHealth:
    """Ask the node how it is, in its own protocol, which is found out first where it is not known.

    Raises:
        NodeError: it cannot be asked, or speaks no protocol of ours.
    """
    protocol = node.effective_protocol or await detect_protocol(endpoint_of(node))
    async with open_client(endpoint_of(node, protocol=protocol)) as client:
        return await client.health()


def record_health(node: GpuNode, health: NodeHealth) -> bool:
    """Record the node's answer; True when it has just become able to take work."""
    status = "ready" if health.ready else health.status
    GpuNode.objects.filter(pk=node.pk).update(
        detected_protocol=health.protocol,
        status=status[:20],
        status_detail=str(health.detail.get("detail") or health.detail.get("error") or "")[:300],
        backend=(health.backend or health.model or "")[:100],
        sizes=list(health.sizes[:20]),
        capacity=max(1, health.capacity),
        seconds_per_step=health.seconds_per_step,
        paces=health.paces,
        last_seen_at=Now(),
    )
    _log_change(node, status)
    return status == "ready" and node.status != "ready"


def record_failure(node: GpuNode, error: NodeError) -> None:
    """Record that the node could not be asked. It keeps the protocol it was known to speak."""
    GpuNode.objects.filter(pk=node.pk).update(status="unreachable", status_detail=str(error)[:300])
    _log_change(node, "unreachable", str(error))


def _log_change(node: GpuNode, status: str, why: str = "") -> None:
    if node.status != status:
        logger.info("node %s: %s → %s %s", node.name, node.status, status, why)


# --- The circuit breaker ----------------------------------------------------------------------------------------------


def count_failure(held: "QuerySet[JobAttempt]", *, error: str, certain: bool = False) -> None:
    """Count an attempt that came to nothing by its node's fault. held: the attempt, while its lease is the caller's.

    certain: the next would come to nothing, too, so the node is set aside by this one. Call it before the attempt is
    closed, in the same transaction.
    """
    blamed = GpuNode.objects.filter(attempts__in=held)
    if not blamed.update(consecutive_failures=F("consecutive_failures") + 1):
        return
    enough = 1 if certain else settings.NODE_FAILURES_TO_SET_ASIDE
    worn_out = blamed.filter(set_aside_at=None, consecutive_failures__gte=enough)
    reason = error if certain else f"{enough} failures in a row, the last: {error}"
    if worn_out.update(
        set_aside_at=Now(),
        set_aside_reason=reason[:300],
        failed_canaries=0,
        next_canary_at=locks.until(settings.NODE_TRIAL_SECONDS),
    ):
        logger.warning("node %s is set aside: %s", blamed.values_list("name", flat=True).first(), error)


def count_success(*, attempt_id: uuid.UUID) -> None:
    """Clear the count after a playable clip. Writes only where there was a failure: most clips touch no row."""
    GpuNode.objects.filter(attempts=attempt_id, consecutive_failures__gt=0).update(consecutive_failures=0)


# --- Refusals: the job's fault or the node's --------------------------------------------------------------------------


def last_good(nodes: Collection[int]) -> dict[int, datetime | None]:
    """Look up when each of these nodes last took a job, made a clip or passed a test, by its id."""
    of_node = JobAttempt.objects.filter(node=OuterRef("pk"))
    made = of_node.filter(state=JobAttempt.State.SUCCEEDED).order_by("-closed_at").values("closed_at")
    taken = of_node.filter(state=JobAttempt.State.OPEN).exclude(remote_id="").order_by("-posted_at")
    passed = CanaryRun.objects.filter(node=OuterRef("pk"), passed=True).order_by("-id").values("ended_at")
    latest = Greatest(*(Subquery(moments[:1]) for moments in (made, taken.values("posted_at"), passed)))
    return dict(GpuNode.objects.filter(pk__in=nodes).order_by().values_list("pk", latest)) if nodes else {}


def are_proven(nodes: Collection[int], job: GenerationJob) -> bool:
    """Tell whether each of these nodes has shown that it works, since it last refused another job than this one."""
    lately = JobAttempt.objects.filter(
        closed_at__gt=locks.until(-REFUSALS_SECONDS), node__in=nodes
    ).order_by()
    others = lately.filter(state=JobAttempt.State.REFUSED).exclude(job=job)
    refused = dict(others.values_list("node").annotate(latest=Max("closed_at")))
    good = last_good(nodes)
    return all((moment := good.get(node)) and moment > refused.get(node, NEVER) for node in nodes)


def blame_refusers(taker: "QuerySet[JobAttempt]") -> None:
    """Blame the nodes that refused what the node of this attempt takes, unless they have taken others since.

    One that has shown before that it works may have refused this job alone; any other is set aside. Call it before the
    attempt is changed, in the same transaction.
    """
    same_job = JobAttempt.objects.filter(job__in=taker.filter(remote_id="").values("job"))
    for refusal in same_job.filter(state=JobAttempt.State.REFUSED).select_related("job").order_by("node"):
        good = last_good([refusal.node_id])[refusal.node_id]
        if good is None or refusal.closed_at is None or good <= refusal.closed_at:
            certain = not are_proven([refusal.node_id], refusal.job)
            error = f"It refused what another node takes: {refusal.error}"
            count_failure(JobAttempt.objects.filter(pk=refusal.pk), error=error, certain=certain)


def have_canaries_made(nodes: Collection[int]) -> None:
    """Have these nodes show with a canary clip whether they work. One that fails sets its node aside."""
    doubtful = GpuNode.objects.filter(pk__in=nodes, set_aside_at=None, next_canary_at=None)
    locked = doubtful.order_by("pk").select_for_update(no_key=True)
    doubtful.filter(pk__in=list(locked.values_list("pk", flat=True))).update(next_canary_at=Now())


# --- Canary clips -----------------------------------------------------------------------------------------------------


def claim_canary(node: GpuNode) -> bool:
    """Claim the canary of a node; the next one is due after a pause that doubles with each."""
    due = GpuNode.objects.filter(pk=node.pk, enabled=True, next_canary_at__lt=Now())
    pause = settings.NODE_TRIAL_SECONDS * min(LONGEST_PAUSE, 2 ** min(node.failed_canaries, 16))
    return bool(due.update(failed_canaries=F("failed_canaries") + 1, next_canary_at=locks.until(pause)))


def bring_back(node: GpuNode) -> None:
    """Give the node jobs again, with a clean record."""
    GpuNode.objects.filter(pk=node.pk).update(
        set_aside_at=None, set_aside_reason="", consecutive_failures=0, failed_canaries=0, next_canary_at=None
    )
    logger.info("node %s is back", node.name)


def note_failed_canary(node: GpuNode, error: Exception) -> None:
    """Set the node aside, if it is not, and show staff why."""
    GpuNode.objects.filter(pk=node.pk, next_canary_at__isnull=False).update(
        set_aside_at=Coalesce("set_aside_at", Now()),
        set_aside_reason=f"The canary clip failed: {error}"[:300],
    )
    logger.warning("node %s: canary clip failed: %s", node.name, error)
