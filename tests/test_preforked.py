"""The stand-in for `python -m MODULE`: its process behaves as the real command's would."""

import os
import signal
import socket
import struct
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest

from tests.node_process import wait_until
from tests.preforked import AVAILABLE, forked_command, forked_pid

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="/proc")
PROGRAM = """
import os, sys, time
print(sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), sys.stdin.readline().strip(), "torch" in sys.modules)
print("an error", file=sys.stderr)
if "wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which the module `program` is found."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return os.environ | {"PYTHONPATH": str(tmp_path), "COLOUR": "red"}


def start(program: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*forked_command("program"), *arguments]
    return subprocess.Popen(command, cwd=program["PYTHONPATH"], env=program, text=True, **streams)


def test_arguments_environment_folder_streams_and_exit_status_are_those_of_the_command(
    program: dict[str, str],
) -> None:
    process = start(program, "a b", "c")

    output, errors = process.communicate("a line\n", timeout=60)

    assert output == f"['a b', 'c'] {program['PYTHONPATH']} red a line True\n"
    assert errors == "an error\n"
    assert process.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_that_ends_the_process_ends_the_command(program: dict[str, str], number: int) -> None:
    process = start(program, "wait")
    os.kill(wait_until(lambda: forked_pid(process.pid), what="the process"), number)

    process.communicate(timeout=60)

    assert process.returncode == -number


def test_a_command_that_is_killed_takes_the_process_with_it(program: dict[str, str]) -> None:
    process = start(program, "wait")
    pid = wait_until(lambda: forked_pid(process.pid), what="the process")

    process.kill()
    process.communicate(timeout=60)

    wait_until(lambda: not psutil.pid_exists(pid), what="the process to end")


def test_a_command_that_is_killed_before_it_has_asked_disturbs_no_other(program: dict[str, str]) -> None:
    running = start(program, "wait")
    wait_until(lambda: forked_pid(running.pid), what="the process")
    for request in (b"", b"\0", struct.pack("!I", 100) + b"half"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(forked_command("program")[-2])
            connection.sendall(request)

    output, _ = start(program).communicate("", timeout=60)

    assert output
    assert running.poll() is None
    running.kill()
    running.communicate(timeout=60)


def test_the_server_ends_with_its_last_user() -> None:
    code = "from tests import preforked; print(preforked.forked_command('x')[-2])"
    environment = os.environ | {"PREFORKED_MODULES": "json", "TEST_RUN": str(uuid.uuid4())}
    command = [sys.executable, "-c", code]
    path = Path(
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    )

    wait_until(lambda: not path.parent.exists(), what="the server to end")
