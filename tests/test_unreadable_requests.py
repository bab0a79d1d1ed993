"""Unreadable requests: site, API and admin refuse them, and none breaks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from videoplatform.asgi import application

pytestmark = pytest.mark.django_db

ANY = Client(raise_request_exception=False)


@pytest.mark.parametrize("charset", ["idna", "punycode", "zlib", "rot13", "utf-16"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/videos/", "/v1/videos"])
def test_a_body_in_another_charset_than_utf8_is_refused(path: str, kind: str, charset: str) -> None:
    answer = ANY.generic("POST", path, b"--x--", content_type=f"{kind}; charset={charset}")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] if path.startswith("/v1/") else b"<html" in answer.content


def test_utf8_may_be_named_and_an_unknown_charset_is_taken_for_it() -> None:
    for charset in ("utf-8", "UTF8", "us-ascii", "klingon"):
        assert ANY.get("/", content_type=f"text/plain; charset={charset}").status_code == 200


@pytest.mark.parametrize("value", [r'"\000aaaaaaaaaaaa"', r'"\355\240\200aaaaaaaaaa"', "a b c d e f g h", ""])
def test_a_session_cookie_of_rubbish_is_no_session(value: str) -> None:
    answer = ANY.get("/", headers={"Cookie": f"sessionid={value}"})
    assert answer.status_code == 200
    assert b"Sign in" in answer.content


@pytest.mark.parametrize(
    "where", ["http://[", "//evil.example", "https://evil.example/", "javascript:alert(1)"]
)
def test_a_sign_in_never_redirects_to_another_site(user: User, where: str) -> None:
    assert ANY.get("/accounts/login/", {"next": where}).status_code == 200
    form = {"login": user.username, "password": "a long enough password", "next": where}
    answer = Client(raise_request_exception=False).post("/accounts/login/", form)
    assert (answer.status_code, answer.headers.get("Location")) == (302, "/")


def test_a_piece_of_a_page_that_lies_about_its_page_is_sent_to_the_sign_in() -> None:
    answer = ANY.get("/balance/", headers={"HX-Request": "true", "HX-Current-URL": "http://["})
    assert answer.headers["HX-Redirect"] == "/accounts/login/?next=%2F"


@pytest.mark.parametrize(
    "path", ["generation/generationjob/?state__exact=%00", "django_q/failure/%00/change/"]
)
def test_a_nul_in_an_address_of_the_admin_is_refused(staff: User, path: str) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(staff)
    assert client.get(f"/admin/{path}").status_code == 400


def test_the_documents_of_the_api_take_nothing_from_the_address() -> None:
    plain = ANY.get("/v1/schema")
    asked = ANY.get("/v1/schema?version=a%0d%0ab%00")
    assert asked.status_code == 200
    assert asked.headers["Content-Disposition"] == plain.headers["Content-Disposition"]
    assert asked.json() == plain.json()


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "POST"])
def test_the_page_of_the_api_refuses_as_the_api_does(method: str) -> None:
    answer = ANY.generic(method, "/v1/docs")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"


# --- The longest body, in front of Django -----------------------------------------------------------------------------


async def _chunks(count: int, size: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(count):
        yield {"type": "http.request", "body": b"a" * size, "more_body": number < count - 1}


def _answer_to(
    path: str, headers: list[tuple[bytes, bytes]], *, count: int, size: int
) -> tuple[int, bytes, int]:
    """Status, body, and how many chunks were taken."""
    sent: list[dict[str, Any]] = []
    taken = 0
    chunks = _chunks(count, size)

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return await anext(chunks, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), taken


def test_a_body_that_is_announced_too_long_is_not_read_at_all(settings: Any) -> None:
    for length in (str(settings.MAX_REQUEST_BYTES + 1).encode(), b"9" * 30):
        status, body, taken = _answer_to("/v1/videos", [(b"content-length", length)], count=1, size=1)
        assert (status, taken) == (413, 0)
        assert b"request_too_large" in body


def test_a_body_that_becomes_too_long_is_read_no_further(settings: Any) -> None:
    size = settings.MAX_REQUEST_BYTES // 4
    status, body, taken = _answer_to("/videos/", [(b"transfer-encoding", b"chunked")], count=1000, size=size)
    assert (status, taken) == (413, 5)
    assert b"<html" in body
