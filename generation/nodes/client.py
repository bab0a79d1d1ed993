"""The one interface the platform has to a node, whatever it speaks."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import ClassVar

from generation.nodes.download import download_file
from generation.nodes.protocol import (
    GenerationRequest,
    NodeEndpoint,
    NodeHealth,
    PermanentNodeError,
    RemoteJob,
)
from generation.nodes.transport import Answer, Transport

HEALTH_TIMEOUT = 5.0
SUBMIT_TIMEOUT = 5.0
CANCEL_TIMEOUT = 30.0
MAX_CLIP_BYTES = 512 * 1024 * 1024
DOWNLOAD_TIMEOUT = 120.0


class NodeClient(AbstractAsyncContextManager["NodeClient"]):
    """A connection to one node; whatever the node does, a method raises `NodeError` and nothing else.

    Use it as an async context manager, or call `aclose()`. It belongs to the event loop it was opened in.
    """

    protocol: ClassVar[str]
    # Where it takes jobs; also what staff know the protocol by.
    route: ClassVar[str]
    # A node that takes a job at once and is asked for it later. It queues, so it is given one job more than it runs.
    # Any other makes the whole clip within one request, which ends with the process that holds it.
    background: ClassVar[bool] = True

    def __init__(self, endpoint: NodeEndpoint) -> None:
        self.endpoint = endpoint
        self.transport = Transport(endpoint)

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.transport.aclose()

    @classmethod
    async def is_spoken(cls, transport: Transport) -> bool:
        """Ask whether the node has this protocol's route, with GET, which starts nothing."""
        return is_there(await transport.call("GET", cls.route, timeout=HEALTH_TIMEOUT))

    @abstractmethod
    async def health(self) -> NodeHealth:
        """Ask the node how it is."""

    async def submit(self, request: GenerationRequest) -> RemoteJob:
        """Hand the job over and return at once; repeat it with the same request when no answer came."""
        raise PermanentNodeError(f"A /{self.protocol} node takes no jobs to run in the background.")

    async def retrieve(self, remote_id: str, *, wait: float = 0) -> RemoteJob:
        """Ask for the job's state; a node that can holds the answer until something changes, at most `wait` seconds.

        Any other node answers at once, so the caller paces its own polling.
        """
        raise PermanentNodeError(f"A /{self.protocol} node has no jobs to ask for.")

    async def cancel(self, remote_id: str) -> RemoteJob | None:
        """Stop the job and return its last state, or None when the node cannot stop a job."""
        return None

    async def forget(self, remote_id: str) -> None:
        """Have the node delete its record of an ended job, and its clip."""
        raise PermanentNodeError(f"A /{self.protocol} node has no jobs to delete.")

    async def generate(self, request: GenerationRequest, *, timeout: float = 90.0) -> RemoteJob:
        """Run the job within one request of at most `timeout` seconds (where `background` is off)."""
        raise PermanentNodeError(f"A /{self.protocol} node does not generate within one request.")

    @abstractmethod
    def content_path(self, job: RemoteJob) -> str:
        """Build the path of the finished file on the node."""

    async def file_url(self, job: RemoteJob) -> str | None:
        """Ask the node where else the finished file is; None when it names no other place."""
        return None

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
        return await download_file(
            self.transport,
            self.content_path(job),
            destination,
            elsewhere=partial(self.file_url, job),
            max_bytes=max_bytes,
            timeout=timeout,
        )


def is_there(answer: Answer) -> bool:
    """Accept a list, a complaint about the key or the request, or a route that takes POST."""
    if answer.status == 405:
        return "POST" in answer.headers.get("allow", "").upper()
    if answer.status == 200:
        return answer.body.lstrip()[:1] in (b"{", b"[")
    return answer.status in (400, 401, 403, 422)
