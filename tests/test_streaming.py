"""Serving stored files: what browsers ask of a video, under ASGI and WSGI, from a folder and from S3."""

from __future__ import annotations

import asyncio
import email.utils
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client
from django.urls import include, path
from storages.backends.s3 import S3Storage

from generation.web import streaming
from generation.web.streaming import filename_for, serve_file

# django_db: serving gives the connection of its view back, where an earlier test has opened one.
pytestmark = [pytest.mark.urls("tests.test_streaming"), pytest.mark.django_db]

SMALL = bytes(range(256)) * 4
LARGE = b"".join(number.to_bytes(4, "big") for number in range(200_000))


def view(request: HttpRequest, name: str) -> HttpResponseBase:
    return serve_file(request, name, filename="a-fox.mp4", as_attachment="save" in request.GET)


async def async_view(request: HttpRequest, name: str) -> HttpResponseBase:
    return await sync_to_async(serve_file)(request, name)


urlpatterns = [
    path("sync/<path:name>", view),
    path("async/<path:name>", async_view),
    path("", include("videoplatform.urls")),  # the pages of errors link to the site
]


@pytest.fixture(autouse=True)
def files() -> None:
    default_storage.save("videos/small.mp4", ContentFile(SMALL))
    default_storage.save("videos/large.mp4", ContentFile(LARGE))
    default_storage.save("videos/empty.mp4", ContentFile(b""))


def get(name: str = "small.mp4", **headers: str) -> HttpResponseBase:
    return Client().get(f"/sync/videos/{name}", headers=headers)


def body(response: HttpResponseBase) -> bytes:
    return b"".join(response) if response.streaming else response.content  # type: ignore[arg-type, attr-defined]


# --- Whole files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small.mp4", "large.mp4", "empty.mp4"])
def test_a_file_comes_whole_and_says_that_it_can_be_sought_in(name: str) -> None:
    contents = {"small.mp4": SMALL, "large.mp4": LARGE, "empty.mp4": b""}[name]
    response = get(name)
    assert response.status_code == 200
    assert body(response) == contents
    assert response["Content-Length"] == str(len(contents))
    assert response["Content-Type"] == "video/mp4"
    assert response["Accept-Ranges"] == "bytes"
    assert response["Cache-Control"].startswith("private")
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Disposition"] == 'inline; filename="a-fox.mp4"'


def test_a_file_can_be_offered_for_saving() -> None:
    response = Client().get("/sync/videos/small.mp4?save")
    assert response["Content-Disposition"] == 'attachment; filename="a-fox.mp4"'


def test_a_file_that_is_gone_is_not_found() -> None:
    assert get("other.mp4").status_code == 404
    assert Client().get("/sync/videos").status_code == 404


def test_a_name_that_leaves_the_storage_is_refused(rf: Any) -> None:
    from django.core.exceptions import SuspiciousFileOperation

    with pytest.raises(SuspiciousFileOperation):
        serve_file(rf.get("/"), "../../etc/passwd")


def test_head_has_the_headers_and_no_body() -> None:
    response = Client().head("/sync/videos/large.mp4")
    assert (response.status_code, response["Content-Length"]) == (200, str(len(LARGE)))
    assert body(response) == b""
    # Range is defined for GET only (RFC 9110, 14.2).
    ranged = Client().head("/sync/videos/large.mp4", headers={"Range": "bytes=0-1"})
    assert (ranged.status_code, ranged["Content-Length"]) == (200, str(len(LARGE)))


# --- Ranges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-1", 0, 2),
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 1024),
        ("bytes=100-199", 100, 200),
        ("bytes=1000-", 1000, 1024),
        ("bytes=1023-1023", 1023, 1024),
        ("bytes=1000-99999", 1000, 1024),
        ("bytes=-1", 1023, 1024),
        ("bytes=-100", 924, 1024),
        ("bytes=-99999", 0, 1024),
        ("bytes= 5 - 9", 5, 10),
        ("bytes=0-999999999999999999", 0, 1024),
    ],
)
def test_one_range_is_sent_as_such(asked: str, start: int, stop: int) -> None:
    response = get(Range=asked)
    assert response.status_code == 206
    assert response["Content-Range"] == f"bytes {start}-{stop - 1}/1024"
    assert response["Content-Length"] == str(stop - start)
    assert body(response) == SMALL[start:stop]


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=1024-1025", "bytes=99999-", "bytes=-0"])
def test_a_range_behind_the_end_is_416(asked: str) -> None:
    response = get(Range=asked)
    assert response.status_code == 416
    assert response["Content-Range"] == "bytes */1024"
    assert body(response) == b""


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=",
        "bytes=-",
        "bytes=5-4",
        "bytes=a-b",
        "bytes=-5-",
        "bytes=--5",
        "items=0-1",
        "0-1",
        "bytes=0x1-0x2",
        "bytes=¹-²",
        "bytes=" + "9" * 400 + "-",
    ],
)
def test_what_is_not_one_range_is_answered_with_the_whole(asked: str) -> None:
    response = get(Range=asked)
    assert response.status_code == 200
    assert body(response) == SMALL


def test_a_range_of_an_empty_file_cannot_be_satisfied() -> None:
    assert get("empty.mp4", Range="bytes=0-1").status_code == 416


@pytest.mark.parametrize("start", [0, 1, streaming.CHUNK_BYTES - 1, streaming.CHUNK_BYTES, 700_000])
def test_a_range_over_several_chunks_is_whole(start: int) -> None:
    response = get("large.mp4", Range=f"bytes={start}-")
    assert body(response) == LARGE[start:]
    middle = get("large.mp4", Range=f"bytes={start}-{start + 300_000}")
    assert body(middle) == LARGE[start : start + 300_001]


# --- Validators ------------------------------------------------------------------------------------------------


def test_what_the_browser_has_is_not_sent_again() -> None:
    first = get()
    for header, value in (
        ("If-None-Match", first["ETag"]),
        ("If-None-Match", f'"other", W/{first["ETag"]}'),
        ("If-None-Match", "*"),
        ("If-Modified-Since", first["Last-Modified"]),
    ):
        again = get(**{header: value, "Range": "bytes=0-1"})
        assert (again.status_code, body(again)) == (304, b"")
        assert again["ETag"] == first["ETag"]
    assert get(**{"If-None-Match": '"other"'}).status_code == 200
    assert get(**{"If-Match": '"other"'}).status_code == 412


def test_a_range_is_of_the_file_the_browser_knows_or_the_whole() -> None:
    first = get()
    for validator in (first["ETag"], first["Last-Modified"]):
        assert get(**{"Range": "bytes=0-1", "If-Range": validator}).status_code == 206
    for validator in ('"other"', f"W/{first['ETag']}", email.utils.formatdate(1, usegmt=True), "nonsense"):
        response = get(**{"Range": "bytes=0-1", "If-Range": validator})
        assert (response.status_code, body(response)) == (200, SMALL)


def test_another_file_under_the_same_name_has_another_etag() -> None:
    before = get()["ETag"]
    default_storage.delete("videos/small.mp4")
    default_storage.save("videos/small.mp4", ContentFile(b"other"))
    assert get()["ETag"] != before


# --- ASGI ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_under_asgi_a_file_streams_in_large_pieces(kind: str) -> None:
    async def fetch(**headers: str) -> tuple[int, bool, list[bytes]]:
        response = await AsyncClient().get(f"/{kind}/videos/large.mp4", headers=headers)
        if not response.streaming:
            return response.status_code, False, [response.content]
        return response.status_code, response.is_async, [chunk async for chunk in response]

    status, is_async, chunks = asyncio.run(fetch())
    assert (status, is_async) == (200, True)
    assert b"".join(chunks) == LARGE
    assert [len(chunk) for chunk in chunks[:-1]] == [streaming.CHUNK_BYTES] * (len(chunks) - 1)
    status, _, chunks = asyncio.run(fetch(Range="bytes=0-1"))
    assert (status, chunks) == (206, [LARGE[:2]])


def asgi_scope(name: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": f"/async/videos/{name}",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }


def test_a_viewer_who_goes_away_leaves_no_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    original = streaming._open

    def remembered(name: str) -> Any:
        opened.append(original(name))
        return opened[-1]

    monkeypatch.setattr(streaming, "_open", remembered)

    async def watch_and_leave() -> None:
        viewer = ApplicationCommunicator(ASGIHandler(), asgi_scope("large.mp4"))
        await viewer.send_input({"type": "http.request", "body": b"", "more_body": False})
        start = await viewer.receive_output(10)
        assert start["status"] == 200
        await viewer.receive_output(10)
        assert not opened[0].file.closed
        await viewer.send_input({"type": "http.disconnect"})
        await viewer.wait(10)

    asyncio.run(watch_and_leave())
    assert opened[0].file.closed


def test_a_slow_disk_does_not_hold_up_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chunk is being read, the event loop runs."""
    reading, go_on = threading.Event(), threading.Event()
    original = streaming._Stored.reading_from

    class Slow:
        """The file, whose second chunk takes long: the first is read in the view."""

        def __init__(self, source: Any) -> None:
            self._source, self._chunks, self.close = source, 0, source.close

        def read(self, size: int, /) -> bytes:
            self._chunks += 1
            if self._chunks == 2:
                reading.set()
                assert go_on.wait(10)
            return self._source.read(size)

    monkeypatch.setattr(
        streaming._Stored, "reading_from", lambda stored, start: Slow(original(stored, start))
    )

    async def fetch() -> bytes:
        response = await AsyncClient().get("/async/videos/large.mp4")
        return b"".join([chunk async for chunk in response])

    async def both() -> bytes:
        task = asyncio.create_task(fetch())
        while not reading.is_set():
            await asyncio.sleep(0.01)
        small = await AsyncClient().get("/async/videos/small.mp4")
        assert small.status_code == 200
        go_on.set()
        return await task

    assert asyncio.run(both()) == LARGE


def test_a_file_that_was_cut_off_meanwhile_ends_in_an_error_not_in_silence() -> None:
    response = get("large.mp4")
    Path(default_storage.path("videos/large.mp4")).write_bytes(LARGE[: streaming.CHUNK_BYTES])
    with pytest.raises(OSError, match="ended before"):
        body(response)


# --- S3 --------------------------------------------------------------------------------------------------------


class BucketRoutes(BaseHTTPRequestHandler):
    """The part of S3 that it takes to look at an object and to read a range of it."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    asked: list[tuple[str, str | None]]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def do_GET(self) -> None:
        self._send(with_body=True)

    def _send(self, *, with_body: bool) -> None:
        self.asked.append((self.command, self.headers.get("Range")))
        data = self.objects.get(self.path.split("?")[0])
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Last-Modified", email.utils.formatdate(1_700_000_000, usegmt=True))
        self.send_header("ETag", '"abc"')
        self.end_headers()
        if with_body:
            self.wfile.write(data[start:])


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BucketRoutes]]:
    objects = {"/clips/videos/large.mp4": LARGE, "/clips/videos/empty.mp4": b""}
    routes = type("Bound", (BucketRoutes,), {"objects": objects, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), routes)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    storage = S3Storage(
        bucket_name="clips",
        endpoint_url=f"http://127.0.0.1:{server.server_address[1]}",
        region_name="eu-central-1",
        access_key="key",
        secret_key="secret",
        addressing_style="path",
    )
    monkeypatch.setattr(streaming, "default_storage", storage)
    yield routes
    server.shutdown()
    server.server_close()


def test_from_s3_only_the_range_is_fetched(rf: Any, bucket: type[BucketRoutes]) -> None:
    response = serve_file(rf.get("/", headers={"Range": "bytes=700000-700009"}), "videos/large.mp4")
    assert response.status_code == 206
    assert body(response) == LARGE[700_000:700_010]
    assert response["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert bucket.asked == [("HEAD", None), ("GET", "bytes=700000-")]


def test_from_s3_a_whole_file_streams(rf: Any, bucket: type[BucketRoutes]) -> None:
    response = serve_file(rf.get("/"), "videos/large.mp4")
    assert response.streaming
    assert body(response) == LARGE
    response.close()
    assert body(serve_file(rf.get("/"), "videos/empty.mp4")) == b""


def test_from_s3_what_is_gone_is_not_found(rf: Any, bucket: type[BucketRoutes]) -> None:
    from django.http import Http404

    with pytest.raises(Http404):
        serve_file(rf.get("/"), "videos/other.mp4")


# --- Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A fox in the snow", "a-fox-in-the-snow.mp4"),
        ("../../etc/passwd", "etc-passwd.mp4"),
        ('Quote " and \\ and \r\nHeader: x', "quote-and-and-header-x.mp4"),
        ("Füchse im Schnee ❄", "füchse-im-schnee.mp4"),
        ("狐狸", "狐狸.mp4"),
        ("", "video.mp4"),
        ("🦊", "video.mp4"),
        ("..", "video.mp4"),
        ("\ud800", "video.mp4"),
        ("word " * 100, "word-word-word-word-word-word-word-word-word-word-word-word.mp4"),
    ],
)
def test_a_file_name_comes_of_the_prompt(prompt: str, name: str) -> None:
    assert filename_for(prompt) == name


def test_a_name_outside_ascii_is_a_valid_header(rf: Any) -> None:
    response = serve_file(rf.get("/"), "videos/small.mp4", filename=filename_for("Füchse"))
    assert response["Content-Disposition"] == "inline; filename*=utf-8''f%C3%BCchse.mp4"
