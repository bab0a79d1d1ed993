"""Clients that send too slowly or in chunks, over real sockets to the server that `make run` starts."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx
import pytest
from django.test import Client

from accounts import api_keys
from accounts.models import User
from generation.models import GenerationJob, GpuNode
from tests import web
from tests.test_sse import Server, serving

pytestmark = pytest.mark.django_db

PATIENCE = 30.0
SECONDS = "1.5"


@pytest.fixture(scope="module")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("web"), REQUEST_SECONDS=SECONDS, VIDEO_COOLDOWN_SECONDS="0"
    ) as running:
        yield running


def connected(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def post(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def all_of(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    return answer


def test_stalled_requests_are_ended_and_hold_up_no_other(server: Server) -> None:
    silent, half = connected(server), connected(server)
    half.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: local")
    api, page = connected(server), connected(server)
    for connection, path in ((api, "/v1/videos"), (page, "/videos/")):
        connection.sendall(post(path, 1000) + b'{"prompt"')
    many = [connected(server) for _ in range(100)]
    for connection in many:
        connection.sendall(post("/v1/videos", 1000))
    assert web.get(f"{server.url}/healthz", timeout=PATIENCE).status_code == 200
    refused = all_of(api)
    assert refused.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in refused
    assert all_of(page).startswith(b"HTTP/1.1 408 ")
    assert all(all_of(connection).startswith(b"HTTP/1.1 408 ") for connection in many)
    assert all_of(silent) == b""
    assert all_of(half) == b""
    for connection in (silent, half, api, page, *many):
        connection.close()
    assert web.get(f"{server.url}/healthz", timeout=PATIENCE).status_code == 200


def test_a_body_that_only_drips_is_ended_too(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(post("/v1/videos", 1000))
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < PATIENCE:
                connection.sendall(b" ")
                connection.settimeout(0.2)
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    continue
                break
        finally:
            connection.settimeout(PATIENCE)
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_but_steady_upload_arrives_and_a_connection_may_be_used_again(server: Server) -> None:
    body = b'{"prompt": "' + b"a" * 8000 + b'"}'
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(post("/v1/videos", len(body)))
            for start in range(0, len(body), 800):
                connection.sendall(body[start : start + 800])
                time.sleep(0.25)  # 3 kB/s: longer than REQUEST_SECONDS in all
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 401 "), "all of it was read: a key is what is missing"


def test_a_later_request_of_a_connection_that_stops_in_its_head_is_ended_too(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"GET /healthz HTTP/1.1\r\nHost"
        )
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1


PROMPT = "A paper boat in the rain"
JSON = ("application/json", json.dumps({"prompt": PROMPT}).encode())
FORM = ("application/x-www-form-urlencoded", b"prompt=A+paper+boat+in+the+rain")
PARTS = (
    "multipart/form-data; boundary=x",
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nA paper boat in the rain\r\n--x--\r\n',
)


def chunks(body: bytes) -> Iterator[bytes]:
    """Send without a length, as clients do that do not know it when they begin."""
    yield body[:7]
    yield body[7:]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("kind", "body"), [JSON, FORM, PARTS], ids=["json", "form", "multipart"])
def test_a_body_in_chunks_is_read_as_one_with_a_length(
    server: Server, user: User, node: GpuNode, kind: str, body: bytes
) -> None:
    headers = {"Authorization": f"Bearer {api_keys.issue(user=user)[1]}", "Content-Type": kind}
    with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as client:
        made = client.post("/v1/videos", content=chunks(body))
        assert (made.status_code, made.json()["prompt"]) == (200, PROMPT), made.text
        remix = client.post(f"/v1/videos/{made.json()['id']}/remix", content=chunks(body))
        assert (remix.status_code, remix.json()["prompt"]) == (200, PROMPT), remix.text


@pytest.mark.django_db(transaction=True)
def test_a_form_of_the_site_may_come_in_chunks_too(server: Server, user: User) -> None:
    browser = Client()
    browser.force_login(user)
    token = "a" * 32
    fields = {"csrfmiddlewaretoken": token, "prompt": PROMPT}
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Cookie": f"csrftoken={token}; sessionid={browser.cookies['sessionid'].value}",
    }
    body = chunks(urlencode(fields).encode())
    answer = httpx.post(f"{server.url}/videos/", content=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 302
    assert GenerationJob.objects.get().prompt == PROMPT
