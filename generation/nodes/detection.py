"""Find out which protocol a node speaks."""

from __future__ import annotations

from generation.nodes import protocol
from generation.nodes.client import HEALTH_TIMEOUT
from generation.nodes.protocol import NodeEndpoint, Protocol
from generation.nodes.transport import Answer, Transport


async def detect_protocol(endpoint: NodeEndpoint) -> Protocol:
    """`endpoint.protocol` is not looked at. Raises NodeError when the node speaks neither or cannot be asked.

    A node of ours says what it speaks in /health. Others are probed with GET, which starts nothing.
    """
    transport = Transport(endpoint)
    try:
        return await _said(transport) or await _probed(transport)
    finally:
        await transport.aclose()


async def _said(transport: Transport) -> Protocol | None:
    answer = await transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
    if answer.status >= 500 or answer.status in (401, 403, 429):
        raise transport.refuse(answer)
    try:
        protocols = answer.json_object().get("protocols")
    except protocol.NodeAnsweredNonsense:
        return None
    if not isinstance(protocols, list):
        return None
    return "videos" if "videos" in protocols else "generate_video" if "generate_video" in protocols else None


async def _probed(transport: Transport) -> Protocol:
    videos = await transport.call("GET", "/v1/videos", timeout=HEALTH_TIMEOUT)
    if _is_there(videos):
        return "videos"
    field = await transport.call("GET", "/generate_video", timeout=HEALTH_TIMEOUT)
    if _is_there(field) or await _is_healthy(transport):
        return "generate_video"
    raise protocol.NodeAnsweredNonsense("Nothing at this address speaks /v1/videos or /generate_video.")


def _is_there(answer: Answer) -> bool:
    """A list, a complaint about the key or the request, or a route that takes POST."""
    if answer.status == 405:
        return "POST" in answer.headers.get("allow", "").upper()
    if answer.status == 200:
        return answer.body.lstrip()[:1] in (b"{", b"[")
    return answer.status in (400, 401, 403, 422)


async def _is_healthy(transport: Transport) -> bool:
    """A node of the field may answer 404 to a GET of its only POST route; its health is what is left."""
    answer = await transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
    try:
        return answer.status == 200 and isinstance(answer.json_object().get("status"), str)
    except protocol.NodeAnsweredNonsense:
        return False
