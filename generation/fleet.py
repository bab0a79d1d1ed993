"""The GPU nodes: where they are, and what was last heard of them."""

import logging
from itertools import chain, count

from django.conf import settings
from django.db.models.functions import Now

from generation.models import GpuNode
from generation.nodes import NodeEndpoint, NodeError, NodeHealth, detect_protocol, open_client

logger = logging.getLogger(__name__)

ENVIRONMENT_NODE = "default"


def sync_environment_node() -> GpuNode | None:
    """Make the node that VIDEO_API_URL names a row, or follow a changed address; None when none is named."""
    if not settings.VIDEO_API_URL:
        return None
    said = {"base_url": settings.VIDEO_API_URL, "api_key": settings.VIDEO_API_KEY, "from_environment": True}
    known = GpuNode.objects.filter(base_url=settings.VIDEO_API_URL).first()
    node = known or GpuNode.objects.filter(from_environment=True).first()
    if node is None:
        return GpuNode.objects.create(name=_free_name(), **said)
    moved = {} if known else {"status": "unknown", "detected_protocol": "", "last_seen_at": None}
    GpuNode.objects.filter(pk=node.pk).update(**said, **moved)
    others = GpuNode.objects.filter(from_environment=True).exclude(pk=node.pk)
    others.update(from_environment=False, enabled=False)
    node.refresh_from_db()
    return node


def endpoint_of(node: GpuNode, *, protocol: str | None = None) -> NodeEndpoint:
    """What a client needs to speak to the node."""
    spoken = protocol or node.effective_protocol or GpuNode.Protocol.VIDEOS
    return NodeEndpoint(
        base_url=node.base_url,
        api_key=node.api_key,
        protocol="generate_video" if spoken == GpuNode.Protocol.GENERATE_VIDEO else "videos",
    )


async def examine(node: GpuNode) -> NodeHealth:
    """Ask the node how it is, in its own protocol, which is found out first where it is not known.

    Raises:
        NodeError: it cannot be asked, or speaks neither protocol.
    """
    protocol = node.effective_protocol or await detect_protocol(endpoint_of(node))
    async with open_client(endpoint_of(node, protocol=protocol)) as client:
        return await client.health()


def record_health(node: GpuNode, health: NodeHealth) -> bool:
    """Write down what it said; True when it has just become able to take work."""
    status = "ready" if health.ready else health.status
    GpuNode.objects.filter(pk=node.pk).update(
        detected_protocol=health.protocol,
        status=status[:20],
        status_detail=str(health.detail.get("detail") or health.detail.get("error") or "")[:300],
        backend=(health.backend or health.model or "")[:100],
        sizes=list(health.sizes[:20]),
        capacity=max(1, health.capacity),
        seconds_per_step=health.seconds_per_step,
        last_seen_at=Now(),
    )
    _log_change(node, status)
    return status == "ready" and node.status != "ready"


def record_failure(node: GpuNode, error: NodeError) -> None:
    """It could not be asked. It keeps the protocol it was known to speak."""
    GpuNode.objects.filter(pk=node.pk).update(status="unreachable", status_detail=str(error)[:300])
    _log_change(node, "unreachable", str(error))


def _log_change(node: GpuNode, status: str, why: str = "") -> None:
    if node.status != status:
        logger.info("node %s: %s → %s %s", node.name, node.status, status, why)


def _free_name() -> str:
    taken = set(GpuNode.objects.values_list("name", flat=True))
    names = chain([ENVIRONMENT_NODE], (f"{ENVIRONMENT_NODE}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken)
