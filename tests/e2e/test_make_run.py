"""`make run`: what it starts, what it restarts, and that nothing stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest

from tests import web
from tests.processes import is_gone, still_alive
from tests.stack import COMMANDS, Stack
from videoplatform.process import BASE_DIR, Instance, InstanceFailed
from videoplatform.run import GIVEN_UP

pytestmark = pytest.mark.e2e
ALWAYS = tuple(name for name in COMMANDS if name != "bot")
# A terminal that is not in UTF-8, and Python without its own cures for it.
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_TOKEN = "from @BotFather: it has to be digits"


class Watched(Stack):
    """A platform that counts its starts, and keeps what the first one said."""

    starts, said = 0, ""

    def start(self) -> Self:
        self.starts += 1
        return super().start()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    settings = {"TELEGRAM_BOT_TOKEN": "mistyped", "WEB_PROCESSES": "2"} | ASCII_LOCALE
    platform = Watched(tmp_path_factory.mktemp('100% "données"'), settings, bare=True)
    del platform.environment["DJANGO_SETTINGS_MODULE"]  # pytest has it, people have not
    with platform as running:
        eventually("it greets", lambda: "Ready:" in running.log.read_text())
        eventually("the bot is given up", lambda: GIVEN_UP in running.log.read_text())
        running.said = running.log.read_text()
        yield running
        everything = running.processes()
        assert len(everything) > len(ALWAYS)
    assert still_alive(everything, seconds=30) == []
    assert "Stopped." in running.log.read_text()
    tries = (running.data_dir / "logs" / "bot.log").read_text().count(NO_TOKEN)
    assert tries == running.starts, "a wrong token was tried again"


def eventually(what: str, check: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"after {seconds} s still not so: {what}"
        time.sleep(0.1)


def running_pid(stack: Stack, program: str) -> int | None:
    try:
        return stack.pid_of(program)
    except (LookupError, psutil.NoSuchProcess):
        return None


def server_pid(stack: Stack) -> int | None:
    pid_file = stack.data_dir / "postgres" / "postmaster.pid"
    words = pid_file.read_text().split() if pid_file.exists() else []
    return int(words[0]) if words else None


def healthy(url: str) -> bool:
    try:
        return web.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_every_program_runs_but_a_bot_with_a_wrong_token_which_is_tried_once(stack: Watched) -> None:
    for program in ALWAYS:
        eventually(f"{program} runs", lambda program=program: running_pid(stack, program) is not None)
    assert stack.said.index(NO_TOKEN) < stack.said.index(GIVEN_UP)
    assert running_pid(stack, "bot") is None


def test_the_site_and_the_node_answer(stack: Stack) -> None:
    assert web.get(f"{stack.url}/healthz").status_code == 200
    eventually("the node answers", lambda: healthy(f"{stack.node_url}/health"))


def test_it_greets_with_the_address_and_shows_the_first_password_once(stack: Watched) -> None:
    assert stack.said.startswith("Preparing the database …\n")
    assert f"http://localhost:{stack.port}" in stack.said
    assert len(re.findall(r"user admin, password \S{12,}", stack.said)) == 1


def test_the_first_staff_user_signs_in_with_that_password(stack: Watched) -> None:
    password = re.search(r"user admin, password (\S+)", stack.said)
    assert password
    with httpx.Client(base_url=stack.url) as browser:
        page = browser.get("/admin/", follow_redirects=True).text
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token
        form = {
            "csrfmiddlewaretoken": token[1],
            "login": "admin",
            "password": password[1],
            "next": "/admin/",
        }
        assert browser.post("/accounts/login/", data=form).headers["Location"] == "/admin/"
        assert browser.get("/admin/").status_code == 200


def test_logs_lie_in_the_folder_whatever_its_name(stack: Watched) -> None:
    assert "%" in str(stack.data_dir) and '"' in str(stack.data_dir)
    logs = {log.name for log in (stack.data_dir / "logs").iterdir()}
    assert {f"{program}.log" for program in COMMANDS} <= logs


def test_commands_speak_utf8_in_any_locale(stack: Watched) -> None:
    assert Instance.manage(stack, "shell", "--no-imports", "-c", "print('Видео …')") == "Видео …\n"


def test_static_files_are_served(stack: Stack) -> None:
    page = web.get(f"{stack.url}/accounts/login/").text
    sheet = re.search(r'href="(/static/[^"]+\.css)"', page)
    assert sheet
    answer = web.get(f"{stack.url}{sheet[1]}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("program", [name for name in ALWAYS if name != "postgres"])
def test_what_is_killed_is_started_again_and_its_group_does_not_outlive_it(
    stack: Stack, program: str
) -> None:
    eventually(f"{program} runs", lambda: running_pid(stack, program) is not None)
    first = stack.pid_of(program)
    family = stack.family_of(psutil.Process(first))
    os.kill(first, signal.SIGKILL)
    eventually(f"{program} runs again", lambda: running_pid(stack, program) not in {None, first})
    assert still_alive(family, seconds=30) == []
    eventually("the site answers", lambda: healthy(f"{stack.url}/healthz"))


def test_the_database_server_outlives_the_process_that_watches_it(stack: Stack) -> None:
    watcher, server = stack.pid_of("postgres"), server_pid(stack)
    os.kill(watcher, signal.SIGKILL)
    eventually("it is watched again", lambda: running_pid(stack, "postgres") not in {None, watcher})
    assert healthy(f"{stack.url}/healthz")
    assert server_pid(stack) == server


def test_a_killed_database_server_comes_back_by_itself(stack: Stack) -> None:
    first = server_pid(stack)
    assert first
    os.kill(first, signal.SIGKILL)
    eventually("another server runs", lambda: server_pid(stack) not in {None, first})
    eventually("the site answers", lambda: healthy(f"{stack.url}/healthz"))


def test_commands_share_its_database(stack: Stack) -> None:
    count = "from django.contrib.auth import get_user_model as m; print(m().objects.count())"
    assert int(Instance.manage(stack, "shell", "--no-imports", "-c", count)) >= 1
    assert healthy(f"{stack.url}/healthz")


def test_a_second_one_in_the_same_folder_is_refused(stack: Stack) -> None:
    with pytest.raises(InstanceFailed, match="already runs here"):
        Instance(stack.data_dir).start()
    assert healthy(f"{stack.url}/healthz")


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        environment = {**Instance(tmp_path).environment, "PORT": str(port)}
        command = [sys.executable, "-m", "videoplatform.run"]
        result = subprocess.run(
            command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert result.returncode == 2
    assert f"port {port}" in result.stderr
    assert "make run PORT=" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_site_that_cannot_start_is_given_up_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed, match=r"(?s)does not start.*invalid int value: 'many'"):
        Stack(tmp_path, {"WEB_PROCESSES": "many", "VIDEO_API_URL": "http://127.0.0.1:9"}).start()


def test_what_a_killed_supervisor_left_is_ended_by_the_next_start(stack: Watched) -> None:
    orphans = [process for process in stack.processes() if process.pid != stack.pid]
    os.kill(stack.pid, signal.SIGKILL)
    stack.stop()
    stack.start()
    eventually(
        "it greets", lambda: "Ready:" in stack.log.read_text()
    )  # what it found here was ended before that
    adopted = server_pid(stack)
    assert [process for process in orphans if not is_gone(process) and process.pid != adopted] == []
    assert "user admin, password" not in stack.log.read_text(), "it is shown once"
