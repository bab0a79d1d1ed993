"""Serve a stored file so that browsers can seek in it: single ranges, validators, HEAD, under ASGI and WSGI.

Django's FileResponse knows no Range, and under ASGI it is read whole into memory. Safari plays nothing from a
server without Range: it asks for `bytes=0-1` first.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

from django.core.files.base import File
from django.core.files.storage import Storage, default_storage
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections, connection
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, http_date, parse_http_date_safe

# One trip to a thread for each of these: large enough to cost nothing, small enough for many viewers at once.
CHUNK_BYTES = 256 * 1024
MAX_TITLE = 60
# The names of stored files never come back with other contents, and are for one person's browser only.
CACHE_CONTROL = "private, max-age=3600"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class UnsatisfiableRange(Exception):
    """The range asked for begins behind the end of the file."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Stored:
    """An open file of the storage and what identifies its contents."""

    file: File[Any]
    size: int
    modified: datetime
    etag: str

    @property
    def timestamp(self) -> int:
        return int(self.modified.timestamp())

    def reading_from(self, start: int) -> _Readable:
        """The open file at that place. S3 is asked for the range alone: its file object would fetch the whole."""
        remote = getattr(self.file, "obj", None)
        if remote is not None:
            return cast(_Readable, remote.get(Range=f"bytes={start}-")["Body"])
        self.file.seek(start)
        return cast(_Readable, self.file)


def serve_file(
    request: HttpRequest,
    name: str,
    *,
    content_type: str = "video/mp4",
    filename: str = "",
    as_attachment: bool = False,
    storage: Storage | None = None,
) -> HttpResponseBase:
    """The response to a GET or HEAD for a file in the storage. Whoever may see it is decided before.

    name: in the storage (default: Django's default storage). filename: what a browser saves it as, see
    `filename_for`. Gives 200, 206, 304, 412 or 416; raises Http404 when the file is gone.
    """
    stored = _open(name, storage or default_storage)
    try:
        response = _respond(request, stored)
    except BaseException:
        stored.file.close()
        raise
    if not response.streaming:
        stored.file.close()
    if response.status_code in (200, 206):
        response["Content-Type"] = content_type
        disposition = content_disposition_header(as_attachment, filename)
        if disposition:
            response["Content-Disposition"] = disposition
    # A viewer may take minutes over a film; the connection that the view used must not wait for the end.
    if not connection.in_atomic_block:
        close_old_connections()
    return response


def filename_for(prompt: str, extension: str = ".mp4") -> str:
    """A file name that any system takes, from a prompt: `a-fox-in-the-snow.mp4`."""
    plain = unicodedata.normalize("NFKC", prompt)
    words = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in plain).split()
    stem = "-".join(words).lower().encode("utf-8", "ignore").decode()[:MAX_TITLE].strip("-")
    return f"{stem or 'video'}{extension}"


def _open(name: str, storage: Storage) -> _Stored:
    if not name:
        raise Http404
    try:
        file = storage.open(name, "rb")
        remote = getattr(file, "obj", None)
        modified = remote.last_modified if remote is not None else storage.get_modified_time(name)
    except (FileNotFoundError, IsADirectoryError):
        raise Http404 from None
    identity = f"{name}\0{file.size}\0{modified.timestamp()}"
    etag = f'"{hashlib.sha256(identity.encode()).hexdigest()[:32]}"'
    return _Stored(file=file, size=file.size, modified=modified, etag=etag)


def _respond(request: HttpRequest, stored: _Stored) -> HttpResponseBase:
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE_CONTROL,
        "ETag": stored.etag,
        "Last-Modified": http_date(stored.timestamp),
        "X-Content-Type-Options": "nosniff",
    }
    whole = HttpResponse(headers=headers)
    conditional = get_conditional_response(request, stored.etag, stored.timestamp, whole)
    if conditional is not whole:
        return cast(HttpResponseBase, conditional)
    if request.method == "HEAD":
        whole["Content-Length"] = str(stored.size)
        return whole
    try:
        asked = _range_asked(request, stored)
    except UnsatisfiableRange:
        return HttpResponse(status=416, headers=headers | {"Content-Range": f"bytes */{stored.size}"})
    start, stop = asked or (0, stored.size)
    if asked:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
    headers["Content-Length"] = str(stop - start)
    return _with_body(request, stored, start, stop, status=206 if asked else 200, headers=headers)


def _range_asked(request: HttpRequest, stored: _Stored) -> tuple[int, int] | None:
    """Start and stop of the one range asked for; None for the whole file.

    Several ranges at once and what cannot be understood are answered with the whole (RFC 9110, 14.2).
    """
    found = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if not found or not _range_is_of_this_file(request, stored):
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, stored.size - int(last)), stored.size
    else:
        start, stop = int(first), min(int(last) + 1 if last else stored.size, stored.size)
        if last and int(last) < start:
            return None
    if start >= stored.size:
        raise UnsatisfiableRange
    return start, stop


def _range_is_of_this_file(request: HttpRequest, stored: _Stored) -> bool:
    """If-Range: the rest is wanted only of the file whose beginning the client has (strong comparison)."""
    validator = request.headers.get("If-Range", "").strip()
    if not validator or validator == stored.etag:
        return True
    return '"' not in validator and parse_http_date_safe(validator) == stored.timestamp


def _with_body(
    request: HttpRequest, stored: _Stored, start: int, stop: int, *, status: int, headers: dict[str, str]
) -> HttpResponseBase:
    """The first chunk is read here, in the view's thread; what fits into it needs no stream."""
    if start == stop:
        return HttpResponse(status=status, headers=headers)
    source = stored.reading_from(start)
    first = source.read(min(CHUNK_BYTES, stop - start))
    if len(first) == stop - start:
        source.close()
        return HttpResponse(first, status=status, headers=headers)
    chunks = _Chunks(first, source, stop - start, close=(source.close, stored.file.close))
    asynchronous = isinstance(request, ASGIRequest)
    return StreamingHttpResponse(
        _AsyncChunks(chunks) if asynchronous else chunks, status=status, headers=headers
    )


class _Chunks(Iterator[bytes]):
    """A part of an open file, read piece by piece. Django calls `close()` when the response is done or dropped."""

    def __init__(
        self, first: bytes, source: _Readable, length: int, *, close: tuple[Callable[[], None], ...]
    ) -> None:
        self._ready: bytes | None = first
        self._source, self._left = source, length
        self._closers = close

    def __next__(self) -> bytes:
        if self._left == 0:
            raise StopIteration
        chunk, self._ready = self._ready or self._source.read(min(CHUNK_BYTES, self._left)), None
        if not chunk:
            raise OSError("a stored file ended before its size")
        self._left -= len(chunk)
        return chunk

    @property
    def has_one_ready(self) -> bool:
        return self._ready is not None

    def close(self) -> None:
        for closer in self._closers:
            closer()


class _AsyncChunks(AsyncIterator[bytes]):
    """The same, off the event loop."""

    def __init__(self, chunks: _Chunks) -> None:
        self._chunks = chunks

    async def __anext__(self) -> bytes:
        if self._chunks.has_one_ready:
            return next(self._chunks)
        # StopIteration cannot cross from a thread into a coroutine: None stands for the end.
        chunk = await asyncio.to_thread(next, self._chunks, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        self._chunks.close()
