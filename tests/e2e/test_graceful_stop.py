"""SIGTERM of each program in the middle of a job ends within 10 s and loses nothing, and a rolling restart under load
fails no request that its client repeats once.
"""

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from tests import web
from tests.bot_api_server import BotApiServer
from tests.processes import still_alive, wait_for
from tests.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STOP_SECONDS = 10.0
SUBMIT_EVERY = 5
NEW_KEY = """
from accounts import api_keys
from accounts.models import User
print(api_keys.issue(user=User.objects.create_user("ada"))[1])
"""

LONG_TASK = "from django_q.tasks import async_task; async_task('time.sleep', 120)"


@pytest.fixture(scope="module")
def telegram() -> Iterator[BotApiServer]:
    with BotApiServer() as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, telegram: BotApiServer) -> Iterator[Stack]:
    settings = {
        **telegram.environment,
        "VIDEO_COOLDOWN_SECONDS": "0",
        "SIGNUP_CREDITS": "100000",
        "LEASE_SECONDS": "6",
        "NODE_HEALTH_SECONDS": "1",
        "GPU_NODE_MODEL": "tiny-random",
        "GPU_NODE_QUEUE_SIZE": "8",
        "WEB_PROCESSES": "2",
    }
    with Stack(tmp_path_factory.mktemp("graceful"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def headers(stack: Stack) -> dict[str, str]:
    return {"Authorization": f"Bearer {stack.manage('shell', '--no-imports', '-c', NEW_KEY).strip()}"}


def leader(stack: Stack, program: str) -> psutil.Process | None:
    try:
        return psutil.Process(stack.pid_of(program))
    except (LookupError, psutil.NoSuchProcess):
        return None


def terminate(stack: Stack, program: str) -> float:
    """SIGTERM to a program's leader; how many seconds it and all its children took to be gone."""
    process = wait_for(lambda: leader(stack, program), message=f"{program} does not run")
    family = [process, *stack.family_of(process)]
    begun = time.monotonic()
    process.terminate()
    assert still_alive(family, seconds=3 * STOP_SECONDS) == []
    return time.monotonic() - begun


def restarted(stack: Stack, program: str, *, instead_of: int) -> psutil.Process:
    def another() -> psutil.Process | None:
        found = leader(stack, program)
        return found if found is not None and found.pid != instead_of else None

    return wait_for(another, message=f"{program} was not started again")


def set_steps(stack: Stack, steps: int) -> None:
    stack.sql("UPDATE generation_preset SET num_inference_steps = %s WHERE name = 'quick'", steps)


def submit(stack: Stack, headers: dict[str, str]) -> str:
    answer = web.post(f"{stack.url}/v1/videos", json={"prompt": "a red ball"}, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def look(stack: Stack, headers: dict[str, str], video: str) -> dict[str, Any]:
    """The video as the API tells it; empty while the site does not answer."""
    try:
        answer = web.get(f"{stack.url}/v1/videos/{video}", headers=headers, timeout=30)
    except httpx.TransportError:
        return {}
    return answer.json() if answer.status_code == 200 else {}


def begin(stack: Stack, headers: dict[str, str]) -> str:
    """A job that is being made just now."""
    video = submit(stack, headers)
    wait_for(lambda: look(stack, headers, video).get("progress", 0) > 0, message="it does not run")
    return video


def completed(stack: Stack, headers: dict[str, str], video: str) -> None:
    def ended() -> bool:
        now = look(stack, headers, video).get("status")
        assert now != "failed", f"{look(stack, headers, video)}\n{stack.log_tail()}"
        return now == "completed"

    wait_for(ended, seconds=120, message="it did not complete", every=0.2)


def entries(stack: Stack, video: str) -> list[str]:
    query = "SELECT kind FROM accounts_credittransaction WHERE reference = %s ORDER BY id"
    return [kind for (kind,) in stack.sql(query, video.removeprefix("video_"))]


class Listener:
    """A client that reads a video's event stream, and comes back when the stream ends before the video does."""

    def __init__(self, stack: Stack, headers: dict[str, str], video: str) -> None:
        self._url, self._headers = f"{stack.url}/v1/videos/{video}/events", headers
        self.opened, self.connections, self.events = threading.Event(), 0, list[str]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.opened.wait(30)

    def _run(self) -> None:
        while "video.completed" not in self.events:
            with contextlib.suppress(httpx.TransportError):
                self._read()
            time.sleep(0.2)

    def _read(self) -> None:
        with web.stream("GET", self._url, headers=self._headers, timeout=60) as answer:
            self.connections += 1
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    self.events.append(line.removeprefix("event: "))
                    self.opened.set()

    def heard_the_end(self) -> bool:
        self._thread.join(30)
        return not self._thread.is_alive()


@pytest.mark.parametrize("program", ["web", "worker", "reconciler", "bot", "gpu_node", "postgres"])
def test_sigterm_in_the_middle_of_a_job_ends_in_time_and_loses_nothing(
    stack: Stack, headers: dict[str, str], program: str
) -> None:
    set_steps(stack, 60)
    video = begin(stack, headers)
    listeners = [Listener(stack, headers, video) for _ in range(3)]
    old = stack.pid_of(program)
    assert terminate(stack, program) <= STOP_SECONDS
    restarted(stack, program, instead_of=old)
    completed(stack, headers, video)
    assert entries(stack, video) == ["reserve", "capture"]
    assert all(listener.heard_the_end() for listener in listeners)


def test_a_worker_does_not_wait_for_a_task_that_takes_long(stack: Stack, headers: dict[str, str]) -> None:
    stack.manage("shell", "--no-imports", "-c", LONG_TASK)
    taken = "SELECT 1 FROM django_q_ormq WHERE lock > now() + interval '60 seconds'"
    wait_for(lambda: stack.sql(taken), message="the task was not taken")
    old = stack.pid_of("worker")
    assert terminate(stack, "worker") <= STOP_SECONDS
    restarted(stack, "worker", instead_of=old)
    completed(stack, headers, submit(stack, headers))


def test_sigterm_of_the_database_server_itself_does_not_leave_it_half_stopped(
    stack: Stack, headers: dict[str, str]
) -> None:
    """For PostgreSQL it means to wait until everybody has left, and to let nobody in meanwhile."""

    def server() -> int:
        return int((stack.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])

    video = begin(stack, headers)
    old = server()
    os.kill(old, signal.SIGTERM)
    wait_for(lambda: not psutil.pid_exists(old), seconds=STOP_SECONDS, message="it did not stop")
    completed(stack, headers, video)
    assert entries(stack, video) == ["reserve", "capture"]


# --- Under load -------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """People who submit and read until told to stop; each repeats a request once, after a second."""

    stack: Stack
    headers: dict[str, str]
    stop: threading.Event = field(default_factory=threading.Event)
    videos: list[str] = field(default_factory=list)
    requests: int = 0
    repeated: int = 0
    failures: list[str] = field(default_factory=list)

    def person(self, number: int) -> None:
        for turn in itertools.count():
            if self.stop.is_set():
                return
            if turn % SUBMIT_EVERY == 0:
                self._submit(f"person-{number}-{turn}")
            for path in ("/v1/videos", "/v1/credits", "/accounts/login/"):
                self._twice(
                    lambda path=path: web.get(self.stack.url + path, headers=self.headers, timeout=30)
                )
            self.stop.wait(0.3)

    def _submit(self, key: str) -> None:
        headers = self.headers | {"Idempotency-Key": key}
        made = self._twice(
            lambda: web.post(
                f"{self.stack.url}/v1/videos", json={"prompt": "a red ball"}, headers=headers, timeout=30
            )
        )
        if made is not None:
            self.videos.append(made.json()["id"])

    def _twice(self, request: Callable[[], httpx.Response]) -> httpx.Response | None:
        self.requests += 1
        why = ""
        for again in (False, True):
            self.repeated += again
            try:
                answer = request()
                if answer.status_code < 500:
                    answer.raise_for_status()
                    return answer
                why = f"{answer.status_code} {answer.text[:200]}"
            except httpx.TransportError as error:
                why = repr(error)
            time.sleep(0 if again else 1)
        self.failures.append(why)
        return None


def reload_web(stack: Stack) -> None:
    """SIGHUP: the listening socket stays open while new processes take the place of the old."""
    arbiter = psutil.Process(stack.pid_of("web"))
    old = arbiter.children()
    arbiter.send_signal(signal.SIGHUP)
    assert still_alive(old, seconds=30) == []
    assert stack.pid_of("web") == arbiter.pid


def test_a_rolling_restart_under_load_fails_no_request_that_is_repeated_once(
    stack: Stack, headers: dict[str, str], telegram: BotApiServer
) -> None:
    set_steps(stack, 4)
    load = Load(stack, headers)
    with ThreadPoolExecutor(2) as people:
        busy = [people.submit(load.person, number) for number in range(2)]
        try:
            for program in ("gpu_node", "worker", "reconciler", "bot", "web"):
                if program == "web":
                    reload_web(stack)
                else:
                    old = stack.pid_of(program)
                    assert terminate(stack, program) <= STOP_SECONDS
                    restarted(stack, program, instead_of=old)
            telegram.say("/balance", sender=4711)
            wait_for(lambda: telegram.shown(4711), message="the bot is silent")
        finally:
            load.stop.set()
    for person in busy:
        person.result()
    assert load.failures == []
    assert load.requests > 20
    for video in load.videos:
        completed(stack, headers, video)
        assert entries(stack, video) == ["reserve", "capture"]
    stack.manage("audit_credits")


def test_stopping_all_of_it_in_the_middle_of_a_job_keeps_the_job(
    stack: Stack, headers: dict[str, str]
) -> None:
    set_steps(stack, 60)
    video = begin(stack, headers)
    begun = time.monotonic()
    stack.stop()
    assert time.monotonic() - begun <= 2 * STOP_SECONDS
    assert re.search(r"^Stopped\.$", stack.log.read_text(), re.M)
    stack.start()
    completed(stack, headers, video)
    assert entries(stack, video) == ["reserve", "capture"]
    stack.manage("audit_credits")
