"""The one interface the platform has to a node, whatever it speaks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from generation.nodes.download import download_file
from generation.nodes.protocol import (
    GenerationRequest,
    NodeCannot,
    NodeEndpoint,
    NodeHealth,
    Protocol,
    RemoteJob,
)
from generation.nodes.transport import Transport

HEALTH_TIMEOUT = 5.0
SUBMIT_TIMEOUT = 30.0
CANCEL_TIMEOUT = 30.0
# A server that promised to answer within N seconds is given this much longer before it counts as gone.
WAIT_GRACE = 10.0
MAX_CLIP_BYTES = 512 * 1024 * 1024
DOWNLOAD_TIMEOUT = 120.0


class NodeClient(ABC):
    """A connection to one node; whatever the node does, a method raises `NodeError` and nothing else.

    Use it as an async context manager, or call `aclose()`. It belongs to the event loop it was opened in.
    """

    protocol: ClassVar[Protocol]

    def __init__(self, endpoint: NodeEndpoint) -> None:
        self.endpoint = endpoint
        self.transport = Transport(endpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give the connections back."""
        await self.transport.aclose()

    @abstractmethod
    async def health(self) -> NodeHealth:
        """What the node says of itself; raises when it cannot be asked."""

    async def submit(self, request: GenerationRequest) -> RemoteJob:
        """Hand the job over and return at once; repeat it with the same request when no answer came."""
        raise NodeCannot(f"A /{self.protocol} node takes no jobs to run in the background.")

    async def retrieve(self, remote_id: str, *, wait: float = 0) -> RemoteJob:
        """The job's state; a node that can holds the answer until something changes, at most `wait` seconds.

        Any other node answers at once, so the caller paces its own polling.
        """
        raise NodeCannot(f"A /{self.protocol} node has no jobs to ask for.")

    async def cancel(self, remote_id: str) -> RemoteJob | None:
        """Stop the job and return its last state, or None when the node cannot stop a job."""
        return None

    async def generate(self, request: GenerationRequest, *, timeout: float = 90.0) -> RemoteJob:
        """Run the job within one request of at most `timeout` seconds (field protocol only)."""
        raise NodeCannot(f"A /{self.protocol} node does not generate within one request.")

    @abstractmethod
    def content_path(self, job: RemoteJob) -> str:
        """The path of the finished file on the node."""

    async def download(
        self,
        job: RemoteJob,
        destination: Path,
        *,
        max_bytes: int = MAX_CLIP_BYTES,
        timeout: float = DOWNLOAD_TIMEOUT,
    ) -> int:
        """Fetch the finished clip to `destination`, whole or not at all; returns its size in bytes.

        A connection that breaks is resumed where it broke, within `timeout` seconds for the whole. OSError when the
        parent folder does not exist or the disk is full.
        """
        path = self.content_path(job)
        return await download_file(self.transport, path, destination, max_bytes=max_bytes, timeout=timeout)
