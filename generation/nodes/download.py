"""Fetch a finished clip from a node: resumed where it broke, bounded in bytes and time, all or nothing."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from generation.media.folders import whole_or_nothing
from generation.nodes import protocol
from generation.nodes.transport import Answer, Transport

ATTEMPTS = 5
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
# A node that sends nothing for this long is taken for gone, and the rest is asked for again.
READ_TIMEOUT = 20.0
MAGIC_BYTES = 12
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


@dataclass(frozen=True, kw_only=True)
class DownloadLimits:
    """max_bytes: a larger file is refused. seconds: for the whole download, pauses included."""

    max_bytes: int
    seconds: float


@dataclass
class _Progress:
    """What is on disk already, and what the node said of the file it belongs to."""

    file: IO[bytes]
    received: int = 0
    total: int | None = None
    validator: str | None = None
    head: bytes = b""

    def start_over(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.received, self.total, self.validator, self.head = 0, None, None, b""

    def add(self, chunk: bytes) -> None:
        if len(self.head) < MAGIC_BYTES:
            self.head = (self.head + chunk)[:MAGIC_BYTES]
            if len(self.head) == MAGIC_BYTES:
                self.check_magic()
        self.file.write(chunk)
        self.received += len(chunk)

    def check_magic(self) -> None:
        """MP4 begins with a `ftyp` box, WebM with the EBML mark; an error page with neither."""
        if self.head[4:8] != b"ftyp" and self.head[:4] != b"\x1aE\xdf\xa3":
            raise protocol.NodeAnsweredNonsense("The node sent a file that is no video.")

    @property
    def whole(self) -> bool:
        return self.total is not None and self.received == self.total

    def headers(self) -> dict[str, str]:
        """Ask for the rest, and for all of it anew should the file have changed meanwhile."""
        if not self.received:
            return {}
        rest = {"Range": f"bytes={self.received}-"}
        return rest | {"If-Range": self.validator} if self.validator else rest


async def download_file(transport: Transport, path: str, destination: Path, *, limits: DownloadLimits) -> int:
    """Fetch `path` to `destination` by an atomic rename; returns the size in bytes.

    Raises RemoteJobLost (404), ResultTooLarge, NodeAnsweredNonsense (no video), NodeTimeout, the last
    transient error when five attempts broke off, and OSError when the local disk does not take the file.
    """
    with whole_or_nothing(destination) as partial, partial.open("wb") as file:
        progress = _Progress(file)
        try:
            async with asyncio.timeout(limits.seconds):
                await _persist(transport, path, progress, limits.max_bytes)
        except TimeoutError:
            raise protocol.NodeTimeout(f"The clip did not arrive within {limits.seconds:g} s.") from None
    return progress.received


async def _persist(transport: Transport, path: str, progress: _Progress, max_bytes: int) -> None:
    """Ask again for what is missing until it is all there, a few times."""
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await _receive(transport, path, progress, max_bytes)
            return
        except protocol.TransientNodeError as error:
            if attempt == ATTEMPTS:
                raise
            asked = error.retry_after if isinstance(error, protocol.NodeBusy) else 0.0
        await asyncio.sleep(min(max(pause, asked), LONGEST_PAUSE))
        pause *= 2


async def _receive(transport: Transport, path: str, progress: _Progress, max_bytes: int) -> None:
    """One request for what is missing."""
    async with transport.stream(path, headers=progress.headers(), read_timeout=READ_TIMEOUT) as response:
        if response.status_code == 416 and progress.received:
            _settle_unsatisfiable(response, progress)
            return
        if response.status_code not in (200, 206):
            raise await _refusal(transport, response)
        _place(response, progress)
        _note(response, progress, max_bytes)
        async for chunk in response.aiter_raw():
            if progress.received + len(chunk) > max_bytes:
                raise protocol.ResultTooLarge(f"The clip has more than {max_bytes} bytes.")
            progress.add(chunk)
    if progress.total is not None and progress.received < progress.total:
        raise protocol.NodeUnreachable(
            f"The clip broke off after {progress.received} of {progress.total} bytes."
        )
    # Shorter than the mark itself, the empty file included.
    progress.check_magic()


def _settle_unsatisfiable(response: httpx.Response, progress: _Progress) -> None:
    """416 to a request for the rest: either there is no rest, or the file is another one now."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if progress.total is None and found and found[3] == str(progress.received):
        progress.total = progress.received
    if not progress.whole:
        progress.start_over()
        raise protocol.NodeUnreachable("The clip changed on the node while it was fetched.")


async def _refusal(transport: Transport, response: httpx.Response) -> protocol.NodeError:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > 65536:
            break
    return transport.refuse(Answer(response.status_code, response.headers, bytes(body)))


def _place(response: httpx.Response, progress: _Progress) -> None:
    """Make sure that what comes now continues what is there; begin anew when it does not."""
    if response.status_code == 200:
        progress.start_over()
        return
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if not progress.received or not found or found[1] != str(progress.received):
        progress.start_over()
        raise protocol.NodeUnreachable("The node sent another part of the clip than was asked for.")
    if progress.total is not None and found[3] not in ("*", str(progress.total)):
        progress.start_over()
        raise protocol.NodeUnreachable("The clip changed on the node while it was fetched.")


def _note(response: httpx.Response, progress: _Progress, max_bytes: int) -> None:
    """Learn the whole size and the validator, and refuse by the declared size before a byte is read."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise protocol.NodeAnsweredNonsense("The node sent the clip compressed, which was not asked for.")
    length = response.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) <= 18:
        progress.total = progress.received + int(length)
    if progress.total is not None and progress.total > max_bytes:
        raise protocol.ResultTooLarge(f"The clip has {progress.total} bytes; {max_bytes} are allowed.")
    etag = response.headers.get("etag", "")
    # If-Range takes strong validators only.
    progress.validator = etag if etag.startswith('"') else response.headers.get("last-modified")
