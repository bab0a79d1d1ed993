"""Live event streams over real HTTP, from the server that `make run` starts."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil
import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import api_keys
from accounts.models import User
from generation.jobs import lifecycle, submission
from generation.jobs.events import JobEvent
from generation.models import GenerationJob
from generation.sse.streams import Inbox, frame
from tests import web
from tests.environment import REPOSITORY

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 30.0


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    """gunicorn on a free port against the test database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "videoplatform.asgi:application"]
    worker = ["--worker-class", "videoplatform.web_worker.WebWorker"]
    options = [*worker, "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "5", "--no-control-socket"]
    log = folder / "web.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            cwd=REPOSITORY,
            env={**os.environ, "DATABASE_URL": database_url_now(), "MEDIA_ROOT": str(folder), **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until_up(server)
        yield server
    finally:
        if process.poll() is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        print(log.read_text())


def database_url_now() -> str:
    where = connection.settings_dict
    password = f":{quote(where['PASSWORD'], safe='')}" if where["PASSWORD"] else ""
    port = f":{where['PORT']}" if where["PORT"] else ""
    passwords = f"?passfile={quote(passfile)}" if (passfile := where["OPTIONS"].get("passfile")) else ""
    return f"postgresql://{where['USER']}{password}@{quote(where['HOST'], safe='')}{port}/{where['NAME']}{passwords}"


def wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if web.get(f"{server.url}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.05)
    raise AssertionError(server.log.read_text())


@pytest.fixture(scope="module")
def server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here. It looks at sessions again, and says that it lives, after half a second."""
    times = {"EVENTS_HEARTBEAT_SECONDS": "0.5", "EVENTS_RECHECK_SECONDS": "0.5"}
    with serving(tmp_path_factory.mktemp("web"), **times) as started:
        yield started


@dataclass
class Event:
    name: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Events:
    """The events of a stream, parsed by the standard. Comments are counted."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.heartbeats = 0
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, list[str]] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.heartbeats += 1
            elif line:
                name, _, value = line.partition(":")
                fields.setdefault(name, []).append(value.removeprefix(" "))
            else:
                if "data" in fields:
                    yield Event(fields["event"][0], "\n".join(fields["data"]), fields.get("id", [""])[0])
                fields = {}

    def until(self, name: str, wanted: Callable[[Event], bool] = lambda _: True) -> Event:
        """The next event of this name for which `wanted` holds."""
        return next(event for event in self if event.name == name and wanted(event))


@contextmanager
def listening(server: Server, path: str, headers: dict[str, str]) -> Iterator[Events]:
    with web.stream("GET", f"{server.url}{path}", headers=headers, timeout=PATIENCE) as response:
        assert response.status_code == 200, response.read()
        yield Events(response)


class Connection:
    """An open page as cheap as can be: a socket with a request on it."""

    def __init__(self, server: Server, path: str, headers: dict[str, str]) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {headers[name]}" for name in headers)]
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._said = ""

    def read_until(self, words: str) -> None:
        while words not in self._said:
            chunk = self._socket.recv(65536)
            assert chunk, self._said
            self._said += chunk.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def connections_of_others() -> list[str]:
    """Return the last query of each connection to this database but our own."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return [query for (query,) in cursor.fetchall()]


def cookie(user: User) -> dict[str, str]:
    client = Client()
    client.force_login(user)
    return {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}


def bearer(user: User) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_keys.issue(user=user)[1]}"}


def shown(job: GenerationJob, state: str = "") -> str:
    """The words by which the card of a job, in a state or in any, is known."""
    return f'id="card-{job.id.hex}" class="card {state}'


def shows(job: GenerationJob, state: str = "") -> Callable[[Event], bool]:
    return lambda event: shown(job, state) in event.data


def submit(user: User, prompt: str = "A paper boat in the rain") -> GenerationJob:
    return submission.submit(user=user, prompt=prompt, source="web")


class TestBrowser:
    def test_a_job_is_followed_from_the_snapshot_on(
        self, server: Server, user: User, start_job: Callable[[GenerationJob], Any]
    ) -> None:
        job = submit(user)
        with listening(server, "/events", cookie(user)) as events:
            assert events.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert events.response.headers["Cache-Control"] == "no-cache"
            assert events.response.headers["X-Accel-Buffering"] == "no"
            assert "A paper boat in the rain" in events.until("card", shows(job, "queued")).data
            attempt = start_job(job)
            lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=7)
            events.until("card", lambda event: "step 7 of 20" in event.data and shows(job, "running")(event))
            lifecycle.cancel(job=job)
            events.until("card", shows(job, "canceled"))

    def test_jobs_of_others_are_not_sent(
        self, server: Server, user: User, make_user: Callable[..., User]
    ) -> None:
        other = submit(make_user("bob"))
        with listening(server, "/events", cookie(user)) as events:
            lifecycle.cancel(job=other)
            mine = submit(user)
            assert shows(mine)(events.until("card"))

    def test_several_pages_of_one_person_hear_the_same(self, server: Server, user: User) -> None:
        headers = cookie(user)
        with listening(server, "/events", headers) as one, listening(server, "/events", headers) as two:
            job = submit(user)
            assert one.until("card", shows(job)).data == two.until("card", shows(job)).data

    def test_a_queued_job_is_sent_again_when_others_left_the_queue(
        self,
        server: Server,
        user: User,
        make_user: Callable[..., User],
        start_job: Callable[[GenerationJob], Any],
    ) -> None:
        ahead, mine = submit(make_user("bob")), submit(user)
        with listening(server, "/events", cookie(user)) as events:
            before = events.until("card", shows(mine)).data
            start_job(ahead)
            events.until("card", lambda event: shows(mine)(event) and event.data != before)

    def test_jobs_that_ended_during_a_gap_are_sent(self, server: Server, user: User, settings: Any) -> None:
        settings.VIDEO_COOLDOWN_SECONDS = 0
        long_ago, now = lifecycle.cancel(job=submit(user)), timezone.now()
        GenerationJob.objects.filter(pk=long_ago.pk).update(finished_at=now - timedelta(hours=1))
        live = submit(user)
        with listening(server, "/events", cookie(user)) as events:
            assert shows(live)(events.until("card"))
        lifecycle.cancel(job=live)
        seen = int((now - timedelta(hours=2)).timestamp() * 1000)
        with listening(server, "/events", cookie(user) | {"Last-Event-ID": str(seen)}) as events:
            told = [events.until("card"), events.until("card")]
        assert [sum(map(shows(job), told)) for job in (live, long_ago)] == [1, 1]

    @pytest.mark.parametrize("said", ["x", "-1", "9" * 40, "٣" * 13])
    def test_a_strange_last_event_id_does_no_harm(self, server: Server, user: User, said: str) -> None:
        job = submit(user)
        headers = [(b"Cookie", cookie(user)["Cookie"].encode()), (b"Last-Event-ID", said.encode())]
        with web.stream("GET", f"{server.url}/events", headers=headers, timeout=PATIENCE) as response:
            assert shows(job)(Events(response).until("card"))

    def test_a_session_is_required(self, server: Server) -> None:
        assert web.get(f"{server.url}/events").status_code == 401
        assert web.get(f"{server.url}/events", headers={"Cookie": "sessionid=nonsense"}).status_code == 401

    def test_a_stream_ends_when_its_session_does(self, server: Server, user: User) -> None:
        with listening(server, "/events", cookie(user)) as events:
            Session.objects.all().delete()
            assert list(events) == []

    def test_a_stream_ends_when_its_reader_is_banned(self, server: Server, user: User) -> None:
        with listening(server, "/events", cookie(user)) as events:
            user.is_active = False
            user.save()
            assert list(events) == []

    def test_silence_is_filled_with_heartbeats(self, server: Server, user: User) -> None:
        with listening(server, "/events", cookie(user)) as events:
            lines = events.response.iter_lines()
            assert next(lines) == "retry: 2000"
            assert next(line for line in lines if line) == ": still here"

    def test_a_host_that_is_not_ours_gets_no_stream(self, server: Server, user: User) -> None:
        response = web.get(f"{server.url}/events", headers=cookie(user) | {"Host": "evil.example"})
        assert response.status_code == 400


class TestApi:
    def test_a_video_is_followed_to_its_end(
        self,
        server: Server,
        user: User,
        start_job: Callable[[GenerationJob], Any],
    ) -> None:
        job, headers = submit(user), bearer(user)
        with listening(server, f"/v1/videos/{job.public_id}/events", headers) as events:
            assert events.until("video.updated").json["status"] == "queued"
            attempt = start_job(job)
            lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=10)
            running = events.until("video.updated", lambda event: event.json["step"] == 10).json
            assert (running["status"], running["progress"]) == ("in_progress", 50)
            lifecycle.attempt_failed(
                attempt_id=attempt.pk, token=attempt.pk, code="rejected", message="No boats today.", error="x"
            )
            *_, last = list(events)
        assert last.name == "video.failed"
        assert last.json == web.get(f"{server.url}/v1/videos/{job.public_id}", headers=headers).json()

    def test_a_video_that_has_ended_is_sent_once(
        self, server: Server, user: User, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        job = finish_job(submit(user))
        with listening(server, f"/v1/videos/{job.public_id}/events", bearer(user)) as events:
            assert [(event.name, event.json["progress"]) for event in events] == [("video.completed", 100)]

    def test_errors_are_those_of_the_rest_of_the_api(
        self, server: Server, user: User, make_user: Callable[..., User]
    ) -> None:
        path = f"{server.url}/v1/videos/{submit(user).public_id}/events"
        assert web.get(path).json()["error"]["type"] == "authentication_error"
        assert web.get(path, headers={"Authorization": b"Bearer \xff"}).status_code == 401
        assert web.get(path, headers=bearer(make_user("bob"))).json()["error"]["code"] == "not_found"
        assert web.get(f"{server.url}/v1/videos/video_x/events", headers=bearer(user)).status_code == 404

    def test_a_stream_ends_when_its_key_is_revoked(self, server: Server, user: User) -> None:
        job, (key, secret) = submit(user), api_keys.issue(user=user)
        headers = {"Authorization": f"Bearer {secret}"}
        with listening(server, f"/v1/videos/{job.public_id}/events", headers) as events:
            events.until("video.updated")
            api_keys.revoke(key=key)
            assert list(events) == []


class TestServer:
    def test_two_hundred_open_pages_cost_one_connection_that_listens_and_no_threads(
        self, server: Server, make_user: Callable[..., User]
    ) -> None:
        people = [make_user(f"user-{number}") for number in range(4)]
        headers = [cookie(person) for person in people]
        before = sum(worker.num_threads() for worker in server.workers)
        with ExitStack() as stack:
            pages = [
                stack.enter_context(Connection(server, "/events", headers[number % 4]))
                for number in range(200)
            ]
            for page in pages:
                page.read_until("retry: 2000")
            jobs = [submit(person) for person in people]
            for number, page in enumerate(pages):
                page.read_until(shown(jobs[number % 4], "queued"))
            threads = sum(worker.num_threads() for worker in server.workers)
            backends = connections_of_others()
        assert len([query for query in backends if query.startswith("LISTEN")]) == len(server.workers) == 1
        assert len(backends) < 12
        assert threads - before < 12

    def test_events_go_on_after_the_listener_lost_its_connection(self, server: Server, user: User) -> None:
        with listening(server, "/events", cookie(user)) as events:
            job = submit(user)
            events.until("card")
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = %s AND query LIKE 'LISTEN%%'",
                    [connection.settings_dict["NAME"]],
                )
                assert cursor.fetchone()[0] >= 1
            lifecycle.cancel(job=job)
            assert events.until("card", shows(job, "canceled"))

    def test_a_server_that_stops_ends_its_streams_first(
        self, django_db_setup: None, user: User, tmp_path: Path
    ) -> None:
        with serving(tmp_path) as server, listening(server, "/events", cookie(user)) as events:
            submit(user)
            events.until("card")
            server.process.terminate()
            # Reading to a clean end: a connection that was cut would raise.
            assert all(event.name for event in events)
            assert server.process.wait(PATIENCE) == 0
            assert "Forcing close" not in server.log.read_text()


def test_of_a_job_that_moves_faster_than_its_reader_only_the_latest_is_kept() -> None:
    async def play() -> None:
        inbox = Inbox(user=1)
        assert inbox.take() == ([], True)
        for step in range(500):
            inbox.put(JobEvent(job="a", user=1, state="running", step=step, steps=500))
        inbox.put(JobEvent(job="b", user=1, state="queued", step=0, steps=500))
        events, everything = inbox.take()
        assert [(event.job, event.step) for event in events] == [("a", 499), ("b", 0)]
        assert not everything
        assert await inbox.wait(0.01) is False

    asyncio.run(play())


def test_line_ends_in_a_card_cannot_break_out_of_its_event() -> None:
    assert (
        frame("card", "a\r\nevent: b\rc\n\nd")
        == b"event: card\ndata: a\ndata: event: b\ndata: c\ndata: \ndata: d\n\n"
    )
