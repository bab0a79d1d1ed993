"""Clients of GPU nodes: one interface, two protocols.

async with open_client(NodeEndpoint(base_url=…, api_key=…, protocol="videos")) as node:
    job = await node.submit(request)
    while not job.finished:
        job = await node.retrieve(job.remote_id, wait=20)
    await node.download(job, destination)
"""

from generation.nodes.client import NodeClient
from generation.nodes.detection import detect_protocol
from generation.nodes.generate_video import GenerateVideoClient
from generation.nodes.protocol import (
    GenerationRequest,
    NodeAnsweredNonsense,
    NodeBusy,
    NodeCannot,
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
    Protocol,
    RemoteJob,
    RemoteJobLost,
    RemoteState,
    ResultTooLarge,
    TransientNodeError,
)
from generation.nodes.transport import checked_url
from generation.nodes.videos import VideosClient

__all__ = [
    "GenerateVideoClient",
    "GenerationRequest",
    "NodeAnsweredNonsense",
    "NodeBusy",
    "NodeCannot",
    "NodeClient",
    "NodeEndpoint",
    "NodeError",
    "NodeHealth",
    "NodeMisconfigured",
    "NodeNotReached",
    "NodeRejected",
    "NodeServerError",
    "NodeTimeout",
    "NodeUnauthorized",
    "NodeUnreachable",
    "PermanentNodeError",
    "Protocol",
    "RemoteJob",
    "RemoteJobLost",
    "RemoteState",
    "ResultTooLarge",
    "TransientNodeError",
    "VideosClient",
    "checked_url",
    "detect_protocol",
    "open_client",
]


def open_client(endpoint: NodeEndpoint) -> NodeClient:
    """The client for what the node speaks; NodeMisconfigured when its address or key cannot be used."""
    if endpoint.protocol == "generate_video":
        return GenerateVideoClient(endpoint)
    return VideosClient(endpoint)
