"""Clients of GPU nodes: one interface, one file a protocol.

async with open_client(NodeEndpoint(base_url=…, api_key=…, protocol="videos")) as node:
    job = await node.submit(request)
    while not job.finished:
        job = await node.retrieve(job.remote_id, wait=20)
    await node.download(job, destination)
"""

from generation.nodes.client import HEALTH_TIMEOUT, NodeClient
from generation.nodes.generate_video import GenerateVideoClient
from generation.nodes.protocol import (
    DOUBTFUL,
    GenerationRequest,
    NodeAnsweredNonsense,
    NodeBusy,
    NodeEndpoint,
    NodeError,
    NodeHasNoRoute,
    NodeHealth,
    NodeMisconfigured,
    NodeNotReached,
    NodeRejected,
    NodeServerError,
    NodeTimeout,
    NodeUnauthorized,
    NodeUnreachable,
    PermanentNodeError,
    RemoteJob,
    RemoteJobLost,
    RemoteState,
    ResultElsewhere,
    ResultTooLarge,
    TransientNodeError,
)
from generation.nodes.transport import Answer, Transport, checked_url
from generation.nodes.videos import VideosClient

# Every protocol there is; a node that speaks several is asked in the first one.
CLIENTS: tuple[type[NodeClient], ...] = (VideosClient, GenerateVideoClient)


def client_class(protocol: str) -> type[NodeClient]:
    """Find the client of this protocol; the first one while the node's is not known."""
    return next((client for client in CLIENTS if client.protocol == protocol), CLIENTS[0])


def open_client(endpoint: NodeEndpoint) -> NodeClient:
    """Open the client for what the node speaks; NodeMisconfigured when its address or key cannot be used."""
    return client_class(endpoint.protocol)(endpoint)


async def detect_protocol(endpoint: NodeEndpoint) -> str:
    """Find out which protocol a node speaks; `endpoint.protocol` is not looked at.

    A node of ours names its protocols in /health. Others are probed with GET, which starts nothing.

    Raises:
        NodeError: the node speaks none of them or cannot be asked.
    """
    transport = Transport(endpoint)
    try:
        health = await transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
        if health.status >= 500 or health.status in (401, 403, 429):
            raise transport.refuse(health)
        named = _protocols_in(health)
        for client in CLIENTS:
            if client.protocol in named or (not named and await client.is_spoken(transport)):
                return client.protocol
    finally:
        await transport.aclose()
    if 300 <= health.status < 400:
        raise transport.refuse(health)
    routes = " or ".join(client.route for client in CLIENTS)
    raise NodeAnsweredNonsense(f"Nothing at this address speaks {routes}.")


def _protocols_in(health: Answer) -> set[str]:
    """Read which of our protocols the node names; empty where it names none."""
    try:
        named = health.json_object().get("protocols")
    except NodeAnsweredNonsense:
        return set()
    return {client.protocol for client in CLIENTS if isinstance(named, list) and client.protocol in named}
