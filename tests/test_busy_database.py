"""The web process's pool of connections: a 503 while it has none to spare, and a restart of the server."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction

from generation import sharing
from generation.database import listen_parameters
from generation.jobs import submission
from tests.processes import wait_for
from tests.test_sse import Server, bearer, cookie, serving

pytestmark = pytest.mark.django_db(transaction=True)

# Not from pg_stat_activity, which does not change within a transaction.
WAITERS = """SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
             WHERE NOT granted AND datname = current_database()"""


GRACE_SECONDS = 1


@pytest.fixture(scope="module")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A pool of one connection, with a short wait for it."""
    narrow = {"DATABASE_POOL_SIZE": "1", "DATABASE_POOL_SECONDS": "0.2"}
    narrow["GUNICORN_CMD_ARGS"] = f"--asgi-disconnect-grace-period {GRACE_SECONDS}"
    with serving(tmp_path_factory.mktemp("web"), **narrow) as running:
        yield running


@pytest.fixture
def site(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def waiters() -> list[int]:
    """The server's processes whose query waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute(WAITERS)
        return [pid for (pid,) in cursor.fetchall()]


def test_a_request_without_a_connection_is_503_with_retry_after(server, site, user, finish_job):
    job = finish_job(submission.submit(user=user, prompt="A red fox", source="web"))
    session, key = cookie(user), bearer(user)
    site.cookies.set("csrftoken", "a" * 32)
    credentials = {"login": user.username, "password": "x", "csrfmiddlewaretoken": "a" * 32}
    pages = [
        site.build_request("GET", "/", headers=session),
        site.build_request("GET", f"/videos/{job.public_id}/", headers=session),
        site.build_request("GET", "/balance/", headers=session),
        site.build_request("GET", "/accounts/sessions/", headers=session),
        site.build_request("GET", "/admin/", headers=session),
        site.build_request("GET", f"/s/{sharing.share(job=job).token}/"),
        site.build_request("POST", "/accounts/login/", data=credentials),
    ]
    api = [
        site.build_request("GET", "/v1/videos", headers=key),
        site.build_request("POST", "/v1/videos", headers=key, json={"prompt": "A red fox"}),
        site.build_request("GET", f"/v1/videos/{job.public_id}/content", headers=key),
        site.build_request("GET", f"/v1/videos/{job.public_id}/events", headers=key),
    ]
    plain = [site.build_request("GET", "/events", headers=session), site.build_request("GET", "/healthz")]
    table = get_user_model()._meta.db_table
    with ThreadPoolExecutor() as threads:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table}")
            stuck = threads.submit(httpx.get, f"{server.url}/v1/credits", headers=key, timeout=60)
            wait_for(waiters)
            answers = list(threads.map(site.send, [*pages, *api, *plain]))
        assert stuck.result().status_code == 200
    said = {f"{answer.request.method} {answer.request.url.path}": answer for answer in answers}
    assert {door: answer.status_code for door, answer in said.items()} == dict.fromkeys(said, 503)
    assert {answer.headers["Retry-After"] for answer in answers} == {"5"}
    for answer in answers[: len(pages)]:
        assert "Very busy just now" in answer.text, answer.request.url
    for answer in answers[len(pages) : -2]:
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("unavailable", "server_error")
    assert [site.send(request).status_code for request in (pages[2], api[0])] == [200, 200]


@pytest.mark.parametrize("door", ["/v1/credits", "/", "/balance/"])
def test_a_request_whose_client_has_left_gives_its_connection_back_when_it_is_done(server, site, user, door):
    """gunicorn cuts off what goes on for seconds after its client has left; the thread at work knows nothing of it."""
    key, session = bearer(user), cookie(user)
    table = get_user_model()._meta.db_table
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table}")
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{server.url}{door}", headers=key | session, timeout=1)
        assert waiters()
        time.sleep(GRACE_SECONDS + 2)
        assert site.get("/healthz").status_code == 503, "the one connection is in use"
    wait_for(lambda: site.get("/v1/credits", headers=key).status_code == 200, seconds=10)


def test_the_first_request_after_a_restart_of_the_server_is_answered_at_once(tmp_path, user):
    """A restart kills every connection of the pool, the idle ones too."""
    size, key, table = 6, bearer(user), get_user_model()._meta.db_table
    with serving(tmp_path, DATABASE_POOL_SIZE=str(size)) as server, ThreadPoolExecutor() as threads:

        def ask() -> int:
            return httpx.get(f"{server.url}/v1/credits", headers=key, timeout=60).status_code

        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table}")
            answers = [threads.submit(ask) for _ in range(size)]
            wait_for(lambda: len(waiters()) == size)
            pool = waiters()
        assert [answer.result() for answer in answers] == [200] * size
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s) AS pid", [pool])
            assert cursor.fetchall() == [(True,)] * size
        begun = time.monotonic()
        assert ask() == 200
        assert time.monotonic() - begun < 1


def test_requests_are_answered_soon_after_a_long_outage(tmp_path, user):
    """The pool does not wait twice as long after each attempt to connect."""
    key, name = bearer(user), connection.ops.quote_name(connection.settings_dict["NAME"])
    # PostgreSQL refuses to close the database that the connection is in.
    elsewhere = psycopg.connect(**listen_parameters() | {"dbname": "postgres"}, autocommit=True)
    with serving(tmp_path, DATABASE_POOL_SIZE="1", DATABASE_POOL_SECONDS="0.5") as server, elsewhere:

        def ask() -> int:
            return httpx.get(f"{server.url}/v1/credits", headers=key, timeout=60).status_code

        assert ask() == 200
        elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            outage_ends = time.monotonic() + 8
            while time.monotonic() < outage_ends:
                assert ask() == 503
        finally:
            elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_for(lambda: ask() == 200, seconds=4)
