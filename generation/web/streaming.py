"""Stored files as responses in which browsers can seek: single ranges, validators, HEAD, under ASGI and WSGI.

Django's FileResponse knows no Range, and under ASGI it is read whole into memory. Safari plays nothing from a
server without Range: it asks for `bytes=0-1` first.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from django.core.files.base import File
from django.core.files.storage import default_storage
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections, connection
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, http_date, parse_http_date_safe

from accounts.privacy import read_in_threads
from generation.models import GenerationJob

# One trip to a thread for each of these: large enough to cost nothing, small enough for many viewers at once.
CHUNK_BYTES = 64 * 1024
MAX_TITLE = 60
# For one browser only, which asks each time: after signing out, or without the link, what it keeps is not shown.
CACHE_CONTROL = "private, no-cache"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class _Stored:
    """An open file of the storage and what identifies its contents."""

    file: "File[Any]"
    size: int
    timestamp: int
    etag: str

    def reading_from(self, start: int) -> IO[bytes]:
        """Position the file. S3 is asked for the range alone: its file object would fetch the whole."""
        if remote := getattr(self.file, "obj", None):
            return cast("IO[bytes]", remote.get(Range=f"bytes={start}-")["Body"])
        self.file.seek(start)
        return cast("IO[bytes]", self.file)


def serve_file(
    request: HttpRequest,
    name: str,
    *,
    content_type: str = "video/mp4",
    filename: str = "",
    as_attachment: bool = False,
) -> HttpResponseBase:
    """Respond to a GET or HEAD for a file in the storage; the caller has checked who may see it.

    name: in Django's default storage. filename: what a browser saves it as, see
    `filename_for`. Gives 200, 206, 304, 412 or 416; raises Http404 when the file is gone.
    """
    stored = _open(name)
    try:
        response = _respond(request, stored)
    except BaseException:
        stored.file.close()
        raise
    if not response.streaming:
        stored.file.close()
    if response.status_code in (200, 206):
        response["Content-Type"] = content_type
        if disposition := content_disposition_header(as_attachment, filename):
            response["Content-Disposition"] = disposition
    # A viewer may take minutes over a film; the connection that the view used must not wait for the end.
    if not connection.in_atomic_block:
        close_old_connections()
    return response


def serve_video(request: HttpRequest, job: GenerationJob) -> HttpResponseBase:
    """Serve a job's MP4; `?download` makes browsers save it, named after the prompt."""
    download = "download" in request.GET
    return serve_file(request, str(job.video), filename=filename_for(job.prompt), as_attachment=download)


def filename_for(prompt: str, extension: str = ".mp4") -> str:
    """Make a file name that any system takes from a prompt: `a-fox-in-the-snow.mp4`."""
    plain = unicodedata.normalize("NFKC", prompt)
    words = "".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in plain).split()
    stem = "-".join(words).lower().encode("utf-8", "ignore").decode()[:MAX_TITLE].strip("-")
    return f"{stem or 'video'}{extension}"


def _open(name: str) -> _Stored:
    if not name:
        raise Http404
    try:
        file = default_storage.open(name, "rb")
        remote = getattr(file, "obj", None)
        modified = remote.last_modified if remote is not None else default_storage.get_modified_time(name)
    except (FileNotFoundError, IsADirectoryError):
        raise Http404 from None
    identity = f"{name}\0{file.size}\0{modified.timestamp()}"
    etag = f'"{hashlib.sha256(identity.encode()).hexdigest()[:32]}"'
    return _Stored(file=file, size=file.size, timestamp=int(modified.timestamp()), etag=etag)


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
    asked = _range_asked(request, stored)
    if asked and asked[0] >= stored.size:
        return HttpResponse(status=416, headers=headers | {"Content-Range": f"bytes */{stored.size}"})
    start, stop = asked or (0, stored.size)
    if asked:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
    length = stop - start
    options: dict[str, Any] = {
        "status": 206 if asked else 200,
        "headers": headers | {"Content-Length": str(length)},
    }
    if not length:
        return HttpResponse(**options)
    source = stored.reading_from(start)
    # The first chunk is read here, in the view's thread; what fits into it needs no stream.
    first = source.read(min(CHUNK_BYTES, length))
    if len(first) == length:
        source.close()
        return HttpResponse(first, **options)
    chunks = _chunks(first, source, length)
    body = read_in_threads(chunks) if isinstance(request, ASGIRequest) else chunks
    response = StreamingHttpResponse(body, **options)
    # Run when it is done or dropped, as those of Django's FileResponse.
    response._resource_closers += [source.close, stored.file.close]  # type: ignore[attr-defined]
    return response


def _range_asked(request: HttpRequest, stored: _Stored) -> tuple[int, int] | None:
    """Parse start and stop of the one range asked for; None for the whole file.

    Several ranges at once and what cannot be understood are answered with the whole (RFC 9110, 14.2).
    """
    found = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    if not found or not any(found.groups()) or not _range_is_of_this_file(request, stored):
        return None
    first, last = (int(text) if text else None for text in found.groups())
    if first is None:  # the last so many bytes
        start, stop = max(0, stored.size - (last or 0)), stored.size
    else:
        start, stop = first, stored.size if last is None else min(last + 1, stored.size)
        if last is not None and last < first:
            return None
    return start, stop


def _range_is_of_this_file(request: HttpRequest, stored: _Stored) -> bool:
    """Check If-Range: the rest is wanted only of the file whose beginning the client has (strong comparison)."""
    validator = request.headers.get("If-Range", "").strip()
    if not validator or validator == stored.etag:
        return True
    return '"' not in validator and parse_http_date_safe(validator) == stored.timestamp


def _chunks(chunk: bytes, source: IO[bytes], length: int) -> Iterator[bytes]:
    """Read `length` bytes piece by piece, of which `chunk` is the first."""
    while chunk:
        yield chunk
        length -= len(chunk)
        if not length:
            return
        chunk = source.read(min(CHUNK_BYTES, length))
    raise OSError("a stored file ended before its size")
