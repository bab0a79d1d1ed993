"""The edge of the site: readers and connections that take their time, headers of all pages, the access log."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.finders import get_finders
from django.test import Client

from accounts import api_keys
from accounts.models import User
from generation.models import GenerationJob, GpuNode
from tests import web
from tests.environment import REPOSITORY
from tests.test_sse import Server, serving

pytestmark = pytest.mark.django_db

MEGABYTE = 1024 * 1024
SIZE = 16 * MEGABYTE  # more than the system itself takes of an answer
SECONDS = 1.5
PER_SOURCE, ALL = 40, 60
TOKEN = "aVerySecretTokenOf22_-"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    for name in ("static", "videos"):
        (folder / name).mkdir()
        with (folder / name / "large.mp4").open("wb") as file:
            file.truncate(SIZE)
    names = [path for finder in get_finders() for path, _ in finder.list([])]
    manifest = {"version": "1.1", "paths": {name: name for name in names}}  # pages of errors name some
    (folder / "static" / "staticfiles.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def server(django_db_setup: None, folder: Path) -> Iterator[Server]:
    with serving(
        folder,
        REQUEST_SECONDS=str(SECONDS),
        STATIC_ROOT=str(folder / "static"),
        MAX_CONNECTIONS=str(ALL),
        CONNECTIONS_PER_SOURCE=str(PER_SOURCE),
        ACCESS_LOG="true",
    ) as running:
        yield running


def connected(server: Server, path: str = "", source: str = "127.0.0.1", headers: str = "") -> socket.socket:
    """Open a connection that takes little in at once, and ask for a page there."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.bind((source, 0))
    connection.settimeout(30)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    if path:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
    return connection


def rest_of(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while chunk := connection.recv(MEGABYTE):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


@pytest.mark.django_db(transaction=True)
def test_slow_readers_hold_no_thread_and_no_file_and_are_cut_off(
    server: Server, folder: Path, user: User, node: GpuNode, submit: Callable[..., Any]
) -> None:
    key = f"Authorization: Bearer {api_keys.issue(user=user)[1]}\r\n"
    job = submit()
    GenerationJob.objects.filter(pk=job.pk).update(
        state="completed", video="videos/large.mp4", finished_at=job.created_at
    )
    media = f"/v1/videos/{job.public_id}/content"
    worker = server.workers[0]
    threads, memory = worker.num_threads(), worker.memory_info().rss
    with ExitStack() as readers:
        slow = [
            readers.enter_context(connected(server, *asked))
            for asked in [("/static/large.mp4", f"127.0.0.{n}") for n in (2, 3) for _ in range(15)]
            + [(media, "127.0.0.4", key)] * 15
        ]
        begun = time.monotonic()
        while len([file for file in worker.open_files() if file.path.endswith("large.mp4")]) < len(slow):
            assert time.monotonic() < begun + 10
            time.sleep(0.05)
        time.sleep(0.3)
        assert web.get(f"{server.url}/healthz", timeout=5).status_code == 200
        assert worker.num_threads() < threads + 20  # those that read pieces, and those of the pool
        assert worker.memory_info().rss < memory + 40 * MEGABYTE
        while [file for file in worker.open_files() if file.path.endswith("large.mp4")]:
            assert time.monotonic() < begun + 20, "a reader who does not read is cut off"
            time.sleep(0.1)
        assert all(connection.recv(13) == b"HTTP/1.1 200 " for connection in slow)
    sent: list[str] = []
    while len(sent) < len(slow):
        assert time.monotonic() < begun + 20
        sent = re.findall(r"GET \S+(?:mp4|content) 200 (\d+) bytes", server.log.read_text())
    assert max(map(int, sent)) < SIZE
    # A player that was paused for so long goes on.
    headers = {"Range": f"bytes={SIZE - 10}-", "Authorization": key[15:-2]}
    for path in ("/static/large.mp4", media):
        again = web.get(server.url + path, headers=headers)
        assert (again.status_code, len(again.content)) == (206, 10)
        steady = web.get(server.url + path, headers=headers | {"Range": "bytes=0-"})
        assert len(steady.content) == SIZE


def test_connections_are_bounded_for_a_source_and_in_all_and_the_refused_are_told(server: Server) -> None:
    with ExitStack() as idle:
        for _ in range(PER_SOURCE):
            idle.enter_context(connected(server, source="127.0.0.5"))
        api, page = (rest_of(connected(server, path, "127.0.0.5")) for path in ("/v1/models", "/"))
        assert api.startswith(b"HTTP/1.1 429 ")
        assert b'"too_many_connections"' in api
        assert b"retry-after" in page
        assert b"<html" in page
        with connected(server, "/healthz", "127.0.0.6") as other:
            assert other.recv(20).startswith(b"HTTP/1.1 200 ")
        for _ in range(ALL - PER_SOURCE):
            idle.enter_context(connected(server, source="127.0.0.7"))
        assert rest_of(connected(server, "/v1/models", "127.0.0.6")).startswith(b"HTTP/1.1 503 ")
    time.sleep(0.2)
    with connected(server, "/healthz", "127.0.0.5") as again:
        assert again.recv(20).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_drips_ends_in_time(server: Server) -> None:
    with connected(server) as connection:
        begun = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        connection.settimeout(0.2)
        while time.monotonic() < begun + 10:
            try:
                connection.sendall(b"a")
                assert connection.recv(100) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert SECONDS - 0.1 < time.monotonic() - begun < SECONDS + 1


@pytest.mark.parametrize("path", ["/", "/events", "/v1/videos"])
def test_a_websocket_is_refused_plainly(server: Server, path: str) -> None:
    upgrade = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    with connected(server, path, headers=upgrade) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")
    assert "Traceback" not in server.log.read_text()


@pytest.mark.django_db(transaction=True)
def test_the_access_log_has_a_line_a_request_and_no_secret(server: Server, user: User) -> None:
    key = api_keys.issue(user=user)[1]
    for path in (f"/s/{TOKEN}/video.mp4", f"/telegram/login/{TOKEN}", f"/nowhere?token={TOKEN}", "/a%0Ab"):
        web.get(server.url + path)
    web.get(f"{server.url}/v1/videos", headers={"Authorization": f"Bearer {key}"})
    web.get(f"{server.url}/v1/videos/video_{'0' * 32}", headers={"Authorization": f"Bearer {key}"})
    deadline = time.monotonic() + 10
    while f"/v1/videos/video_{'0' * 32} 404" not in server.log.read_text():  # a line comes after its answer
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert key not in server.log.read_text()
    log = "\n".join(
        line for line in server.log.read_text().splitlines() if " videoplatform.hardening " in line
    )
    assert TOKEN not in log
    assert re.search(
        r"INFO videoplatform.hardening 127.0.0.1 GET /s/…/video.mp4 404 \d+ bytes \d+ ms user -", log
    )
    assert "GET /telegram/login/… " in log
    assert "GET /nowhere 404" in log
    assert "GET /a%0Ab 404" in log
    assert re.search(rf"GET /v1/videos 200 \d+ bytes \d+ ms user {user.pk}$", log, re.MULTILINE)


# --- Headers and small files ------------------------------------------------------------------------------------------


def test_the_admin_and_the_docs_have_a_policy_too(staff: User) -> None:
    client = Client()
    client.force_login(staff)
    for path, evaluates in (("/admin/", True), ("/v1/docs", False), ("/", False)):
        policy = client.get(path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        script = re.search(r"script-src ([^;]*)", policy)
        assert script
        assert script[1] == ("'self' 'unsafe-eval'" if evaluates else "'self'")
    page = client.get("/v1/docs").content.decode()
    assert "<script>" not in page
    assert client.get("/v1/docs?script=").headers["Content-Type"].startswith("application/javascript")


@pytest.mark.parametrize("path", ["/accounts/logout/", "/admin/logout/"])
def test_signing_out_empties_the_cache(staff: User, path: str) -> None:
    client = Client()
    assert "Clear-Site-Data" not in client.get("/").headers
    assert "Clear-Site-Data" not in client.get("/v1/videos").headers
    client.force_login(staff)
    assert "Clear-Site-Data" not in client.get("/").headers
    assert client.post(path).headers["Clear-Site-Data"] == '"cache"'


def test_what_a_browser_keeps_of_a_film_is_not_shown_without_asking(
    browser: Client, submit: Callable[..., Any], finish_job: Callable[..., Any]
) -> None:
    job = finish_job(submit())
    for name in ("video.mp4", "poster.jpg"):
        assert browser.get(f"/videos/{job.public_id}/{name}").headers["Cache-Control"] == "private, no-cache"


def test_crawlers_and_finders_of_holes_are_told_where_to_go(client: Client, settings: Any) -> None:
    assert "Disallow: /admin/" in client.get("/robots.txt").content.decode()
    settings.SUPPORT_CONTACT = "by post"
    assert client.get("/.well-known/security.txt").status_code == 404
    settings.SUPPORT_CONTACT = "help@example.org"
    text = client.get("/.well-known/security.txt").content.decode()
    assert "Contact: mailto:help@example.org\n" in text
    assert re.search(r"^Expires: 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ$", text, re.MULTILINE)


def test_djangos_own_check_of_a_deployment_is_silent_with_https() -> None:
    https = {
        "SITE_URL": "https://video.example.org",
        "BEHIND_PROXY": "true",
        "SECRET_KEY": secrets.token_urlsafe(48),
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | https, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
