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
from generation.nodes.transport import Transport, checked_url
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
        named = await _protocols_in_health(transport)
        for client in CLIENTS:
            if client.protocol in named or (not named and await client.is_spoken(transport)):
                return client.protocol
    finally:
        await transport.aclose()
    routes = " or ".join(client.route for client in CLIENTS)
    raise NodeAnsweredNonsense(f"Nothing at this address speaks {routes}.")


async def _protocols_in_health(transport: Transport) -> set[str]:
    """Read which of our protocols the node names; empty where it names none."""
    answer = await transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
    if answer.status >= 500 or answer.status in (401, 403, 429):
        raise transport.refuse(answer)
    try:
        named = answer.json_object().get("protocols")
    except NodeAnsweredNonsense:
        return set()
    return {client.protocol for client in CLIENTS if isinstance(named, list) and client.protocol in named}
