"""Fetch a finished clip from a node: resumed where it broke, bounded in bytes and time, all or nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from generation.media.folders import atomic_write
from generation.nodes import protocol
from generation.nodes.transport import Transport, is_compressed, plain_pieces, read_answer

logger = logging.getLogger(__name__)

# The one retry policy of a download, within the time-out of the whole: so many requests in a row without another byte,
# with about 25 s of pauses between them in all. The worker repeats it until DOWNLOAD_TIMEOUT_SECONDS are over.
ATTEMPTS = 10
# So many answers that are no file, of which any but the last may be another's or come too early; 6 s of pauses.
DOUBTFUL_ATTEMPTS = 6
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
# A node that sends nothing for this long is taken for gone, and the rest is asked for again; one that drips is, too.
READ_TIMEOUT = 10.0
# Bytes a second.
SLOWEST = 1024
MAGIC_BYTES = 12
# As in media.decoder, which no other module can import.
FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")
# Answers about one address of the file, which may have another.
REFUSALS = (protocol.NodeRejected, protocol.NodeUnauthorized)
CHANGED = "The clip changed on the node while it was fetched."


async def download_file(
    transport: Transport,
    path: str,
    destination: Path,
    *,
    elsewhere: Callable[[], Awaitable[str | None]],
    max_bytes: int,
    timeout: float,
) -> int:
    """Fetch `path` to `destination` by an atomic rename; returns the size in bytes.

    elsewhere: asks the node for another address of the file, where `path` is not it.
    timeout: seconds for the whole download, repeated requests and pauses included.

    Raises RemoteJobLost (404), ResultTooLarge, ResultElsewhere, NodeAnsweredNonsense (no video), NodeTimeout, the last
    error when ten requests in a row brought nothing, and OSError when the local disk does not take the file.
    """
    with atomic_write(destination) as partial, partial.open("wb") as file:
        progress = _Progress(file)
        try:
            async with asyncio.timeout(timeout):
                await _receive_all(transport, path, progress, elsewhere, max_bytes)
        except TimeoutError:
            raise protocol.NodeTimeout(f"The clip did not arrive within {timeout:g} s.") from None
    return progress.received


async def _receive_all(
    transport: Transport,
    path: str,
    progress: _Progress,
    elsewhere: Callable[[], Awaitable[str | None]],
    max_bytes: int,
) -> None:
    """Ask again for what is missing until it is all there, or too many requests in a row brought nothing.

    A refusal or a page may be another's answer, or come before the file is ready: the node is asked for another address
    of the file, and there again.
    """
    place, pause, left, doubts = path, FIRST_PAUSE, ATTEMPTS, DOUBTFUL_ATTEMPTS
    while True:
        known, asked = progress.received, 0.0
        try:
            await _receive(transport, place, progress, max_bytes)
            return
        except (protocol.TransientNodeError, *protocol.DOUBTFUL, *REFUSALS) as error:
            left, pause = (ATTEMPTS, FIRST_PAUSE) if progress.received > known else (left - 1, pause)
            doubtful = not isinstance(error, protocol.TransientNodeError)
            doubts -= doubtful
            # Where next to nothing came in all that time, the caller may have other files to fetch meanwhile.
            come = progress.received - known
            hangs = isinstance(error, protocol.NodeTimeout) and come < READ_TIMEOUT * SLOWEST
            if not left or not doubts or hangs:
                raise
            logger.info("download of %s: %s Trying again.", path, error)
            asked = error.retry_after if isinstance(error, protocol.NodeBusy) else 0.0
            named = error.address if isinstance(error, _FileNamed) else None
            other = (named or await _ask_for(elsewhere) or path) if doubtful else place
            if isinstance(error, protocol.NodeUnauthorized) and other == place:
                raise
        if other != place:
            progress.start_over()
            place = other
        await asyncio.sleep(min(max(pause, asked), LONGEST_PAUSE))
        pause *= 2


class _FileNamed(protocol.NodeAnsweredNonsense):
    """JSON in place of the file, which names its address."""

    def __init__(self, address: str) -> None:
        super().__init__("The node names another address of the file.")
        self.address = address


async def _ask_for(elsewhere: Callable[[], Awaitable[str | None]]) -> str | None:
    try:
        return await elsewhere()
    except protocol.NodeError:
        return None


@dataclass
class _Progress:
    """The part of the file that is on disk, and the node's description of the whole."""

    file: IO[bytes]
    received: int = 0
    total: int | None = None
    validator: str | None = None
    head: bytes = b""
    resumable: bool = True

    def start_over(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.received, self.total, self.validator, self.head, self.resumable = 0, None, None, b"", True

    def changed(self, message: str = CHANGED) -> protocol.NodeUnreachable:
        """Start over, and return the error to raise: the next request fetches the whole file anew."""
        self.start_over()
        return protocol.NodeUnreachable(message)

    def add(self, chunk: bytes) -> None:
        if len(self.head) < MAGIC_BYTES:
            self.head = (self.head + chunk)[:MAGIC_BYTES]
            if len(self.head) == MAGIC_BYTES:
                self.check_magic()
        self.file.write(chunk)
        self.received += len(chunk)

    def check_magic(self) -> None:
        """Check the first bytes: an MP4 begins with one of these boxes, WebM with the EBML mark."""
        if self.head[4:8] not in FIRST_BOXES and self.head[:4] != b"\x1aE\xdf\xa3":
            raise protocol.NodeAnsweredNonsense("The node sent a file that is no video.")

    def headers(self) -> dict[str, str]:
        """Ask for the rest, and for all of it anew should the file have changed meanwhile."""
        if not self.received or not self.resumable:
            return {}
        rest = {"Range": f"bytes={self.received}-"}
        return rest | {"If-Range": self.validator} if self.validator else rest


async def _receive(transport: Transport, place: str, progress: _Progress, max_bytes: int) -> None:
    try:
        async with asyncio.timeout(READ_TIMEOUT) as patience:
            await _receive_patiently(transport, place, progress, max_bytes, patience)
    except TimeoutError:
        raise protocol.NodeTimeout("The clip comes too slowly.") from None


async def _receive_patiently(
    transport: Transport, place: str, progress: _Progress, max_bytes: int, patience: asyncio.Timeout
) -> None:
    """Receive what is missing. patience: put off by what comes."""
    async with transport.stream(place, headers=progress.headers(), read_timeout=READ_TIMEOUT) as response:
        if response.status_code == 416 and progress.received:
            _settle_unsatisfiable(response, progress)
            return
        if response.status_code not in (200, 206):
            raise transport.refuse(await read_answer(response))
        pieces, head = plain_pieces(response), b""
        # What it says of its type is not trusted.
        while not head.strip() and (piece := await anext(pieces, b"")):
            head += piece
        is_first = response.status_code == 200 or not progress.received
        if is_first and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[", b'"'):
            if address := protocol.file_url(
                (await read_answer(response, begun=head, rest=pieces)).json_value()
            ):
                raise _FileNamed(transport.absolute(address))
            raise protocol.NodeAnsweredNonsense("The node sent JSON in place of the clip.")
        _check_part(response, progress)
        _check_whole(response, progress, max_bytes)
        while head:
            if progress.received + len(head) > max_bytes:
                raise protocol.ResultTooLarge(f"The clip has more than {max_bytes} bytes.")
            progress.add(head)
            now = asyncio.get_running_loop().time()
            patience.reschedule(min((patience.when() or now) + len(head) / SLOWEST, now + READ_TIMEOUT))
            head = await anext(pieces, b"")
    if progress.total is not None and progress.received < progress.total:
        raise protocol.NodeUnreachable(
            f"The clip broke off after {progress.received} of {progress.total} bytes."
        )
    # A file may be shorter than the mark itself, or empty.
    progress.check_magic()


def _settle_unsatisfiable(response: httpx.Response, progress: _Progress) -> None:
    """Handle 416 to a request for the rest: either there is no rest, or the file is another one now."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if progress.total is None and found and found[3] == str(progress.received):
        progress.total = progress.received
    if progress.received != progress.total:
        raise progress.changed()


def _check_part(response: httpx.Response, progress: _Progress) -> None:
    """Check that the answer continues the part on disk; start over when it does not."""
    if response.status_code == 200:
        progress.start_over()
        return
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if not found or found[1] != str(progress.received):
        raise progress.changed("The node sent another part of the clip than was asked for.")
    if progress.total is not None and found[3] not in ("*", str(progress.total)):
        raise progress.changed()


def _check_whole(response: httpx.Response, progress: _Progress, max_bytes: int) -> None:
    """Learn the whole size and the validator, and refuse by the declared size before a byte is read."""
    if is_compressed(response):
        # Its length is not the clip's, and what is missing of it cannot be asked for.
        if response.status_code == 206:
            raise progress.changed()
        progress.resumable = False
        return
    length = response.headers.get("content-length", "")
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code == 206 and found and found[3] != "*":
        # A part may be shorter than what was asked for.
        progress.total = int(found[3])
    elif length.isascii() and length.isdigit() and len(length) <= 18:
        progress.total = progress.received + int(length)
    if progress.total is not None and progress.total > max_bytes:
        raise protocol.ResultTooLarge(f"The clip has {progress.total} bytes; {max_bytes} are allowed.")
    etag = response.headers.get("etag", "")
    # If-Range takes strong validators only.
    progress.validator = etag if etag.startswith('"') else response.headers.get("last-modified")
