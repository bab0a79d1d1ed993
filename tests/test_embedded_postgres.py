"""The embedded PostgreSQL: who starts it, who stops it, and what a kill leaves behind. Real servers, real processes."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from videoplatform.embedded_postgres import NAME, SERVING, EmbeddedPostgresError, connection_settings, hold

BASE_DIR = Path(__file__).resolve().parent.parent
# A process of its own that holds the server, says its number, and leaves when its standard input ends.
HOLDER = """
import sys
import tempfile
from pathlib import Path
from videoplatform.embedded_postgres import hold
with hold(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
# The same, with a forked child that shares what the parent holds and outlives it until its standard input ends.
FORKING_HOLDER = """
import os, sys
from pathlib import Path
from videoplatform.embedded_postgres import hold
with hold(Path(sys.argv[1])) as server:
    if os.fork() == 0:
        print(server.pid, flush=True)
        sys.stdin.read()
        os._exit(0)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    socket_dir = Path(connection_settings(tmp_path)["HOST"])
    if not socket_dir.is_relative_to(tmp_path):
        shutil.rmtree(socket_dir, ignore_errors=True)


def connect(data_dir: Path, **overrides: str) -> "psycopg.Connection[tuple[object, ...]]":
    settings = connection_settings(data_dir, role=NAME)
    parameters = {
        "host": settings["HOST"],
        "port": settings["PORT"],
        "user": settings["USER"],
        "dbname": settings["NAME"],
        **settings["OPTIONS"],
    }
    return psycopg.connect(**{**parameters, **overrides}, autocommit=True)


def value(data_dir: Path, query: str) -> object:
    with connect(data_dir) as connection:
        row = connection.execute(query).fetchone()
        return row and row[0]


def python(*arguments: str, **options: object) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=BASE_DIR, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options)


def said_pid(process: "subprocess.Popen[str]") -> int:
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return int(line)


@contextmanager
def another_holder(data_dir: Path, code: str = HOLDER) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    process = python("-c", code, str(data_dir))
    try:
        yield process, said_pid(process)
    finally:
        process.communicate("", timeout=60)


def test_a_server_is_there_in_the_block_and_gone_after_it(data_dir: Path) -> None:
    with hold(data_dir) as server:
        assert value(data_dir, "SELECT current_setting('TimeZone')") == "UTC"
        assert value(data_dir, "SELECT current_setting('fsync')") == "on"
    assert not server.is_running()
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_the_platforms_role_owns_its_database_and_is_no_superuser(data_dir: Path) -> None:
    with hold(data_dir):
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        assert value(data_dir, owner) == "videoplatform"
        assert value(data_dir, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with connect(data_dir) as connection:
            connection.execute("CREATE DATABASE test_of_rights")  # what a test run does


def test_it_listens_on_no_port_and_its_socket_is_closed_to_others(data_dir: Path) -> None:
    with hold(data_dir) as server:
        assert value(data_dir, "SELECT current_setting('listen_addresses')") == ""
        assert [c for c in server.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN] == []
        assert stat.S_IMODE(Path(connection_settings(data_dir)["HOST"]).stat().st_mode) == 0o700


def test_root_does_not_run_it_as_root(data_dir: Path) -> None:
    with hold(data_dir) as server:
        assert server.uids().effective != 0


def test_root_changes_no_permissions_of_the_folders_above(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    (closed / "data").mkdir()
    with hold(closed / "data"):
        assert value(closed / "data", "SELECT 1") == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without a name")
def test_a_user_without_a_line_in_passwd_has_a_server_too_and_root_after_them(data_dir: Path) -> None:
    os.chown(data_dir, 54321, 54321)
    # The folders above the data and the code may be closed to others, as those of this test are.
    capability = ["--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    become = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *capability, "--"]
    command = [*become, sys.executable, "-c", HOLDER, str(data_dir)]
    result = subprocess.run(command, cwd=BASE_DIR, input="", capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    with hold(data_dir) as server:
        assert server.uids().effective == 54321
        assert value(data_dir, "SELECT rolname FROM pg_roles WHERE rolsuper") == "postgres"


def test_two_processes_share_one_server_and_the_last_one_stops_it(data_dir: Path) -> None:
    with another_holder(data_dir) as (_, pid):
        with hold(data_dir) as server:
            assert server.pid == pid
        assert server.is_running()
        assert value(data_dir, "SELECT 1") == 1
    assert not server.is_running()


def test_processes_that_start_at_once_start_one_server(data_dir: Path) -> None:
    processes = [python("-c", HOLDER, str(data_dir)) for _ in range(4)]
    try:
        assert len({said_pid(process) for process in processes}) == 1
    finally:
        for process in processes:
            process.communicate("", timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_a_server_whose_holder_was_killed_is_adopted_and_stopped(data_dir: Path) -> None:
    with another_holder(data_dir) as (process, pid):
        process.kill()
        process.wait()
        assert psutil.pid_exists(pid)
    with hold(data_dir) as server:
        assert server.pid == pid
    assert not psutil.pid_exists(pid)


def test_a_killed_server_is_followed_by_a_new_one_with_the_same_data(data_dir: Path) -> None:
    with hold(data_dir) as server:
        with connect(data_dir) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        server.kill()
        server.wait()
        assert (data_dir / "postgres" / "postmaster.pid").exists()
        with hold(data_dir) as successor:
            assert successor.pid != server.pid
            assert value(data_dir, "SELECT answer FROM kept") == 42


def test_a_pid_file_whose_number_another_process_has_now_is_no_obstacle(data_dir: Path) -> None:
    with hold(data_dir):
        pass
    bystander = subprocess.Popen(["sleep", "120"])
    try:
        lines = [str(bystander.pid), str(data_dir / "postgres"), "1700000000", "5432", "", "", "", "ready"]
        (data_dir / "postgres" / "postmaster.pid").write_text("\n".join(lines))
        with hold(data_dir) as server:
            assert server.pid != bystander.pid
            assert value(data_dir, "SELECT 1") == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_server_stays_while_a_forked_child_of_a_gone_holder_lives(data_dir: Path) -> None:
    process = python("-c", FORKING_HOLDER, str(data_dir))
    server = psutil.Process(said_pid(process))
    process.wait(60)
    assert server.is_running()
    with hold(data_dir) as adopted:
        assert adopted.pid == server.pid
    assert server.is_running(), "the child still uses it"
    process.communicate("", timeout=60)
    with hold(data_dir):
        pass
    assert not server.is_running()


def test_a_path_too_long_for_a_socket_gets_its_socket_elsewhere(data_dir: Path) -> None:
    deep = data_dir / ("x" * 90) / "with 'quotes', spaces"
    deep.mkdir(parents=True)
    socket_dir = Path(connection_settings(deep)["HOST"])
    assert not socket_dir.is_relative_to(data_dir)
    try:
        with hold(deep):
            assert value(deep, "SELECT 1") == 1
            assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    finally:
        shutil.rmtree(socket_dir)


def test_a_socket_folder_that_others_may_enter_is_refused(data_dir: Path) -> None:
    deep = data_dir / ("x" * 100)
    deep.mkdir()
    socket_dir = Path(connection_settings(deep)["HOST"])
    socket_dir.mkdir()
    socket_dir.chmod(0o777)
    try:
        with (
            pytest.raises(EmbeddedPostgresError, match="belongs to another user, or is open to others"),
            hold(deep),
        ):
            pass
    finally:
        shutil.rmtree(socket_dir)


def test_what_a_killed_initdb_left_is_cleared_away(data_dir: Path) -> None:
    (data_dir / "postgres.new-half").mkdir()
    (data_dir / "postgres.new-half" / "PG_VERSION").write_text("18\n")
    with hold(data_dir):
        assert value(data_dir, "SELECT 1") == 1
    assert not list(data_dir.glob("postgres.new-*"))


def test_a_folder_that_is_no_database_is_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "holiday.jpg").touch()
    with pytest.raises(EmbeddedPostgresError, match="no PostgreSQL data folder"), hold(data_dir):
        pass
    assert (data_dir / "postgres" / "holiday.jpg").exists()


def test_data_of_another_version_is_left_alone_with_a_word_on_what_to_do(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 12.*Dump it"), hold(data_dir):
        pass


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    with hold(data_dir):
        pass
    with (data_dir / "postgres" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_parameter = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_parameter"), hold(data_dir):
        pass


def test_the_supervised_process_stops_the_server_on_sigterm(data_dir: Path) -> None:
    process = python("-m", "videoplatform.embedded_postgres", "--data-dir", str(data_dir))
    assert "ready" in process.stdout.readline()
    with connect(data_dir):  # a connection that is open does not keep it
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    process.communicate()
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_the_supervised_process_fails_when_the_server_dies(data_dir: Path) -> None:
    process = python("-m", "videoplatform.embedded_postgres", "--data-dir", str(data_dir))
    assert "ready" in process.stdout.readline()
    os.kill(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "died" in errors


def test_an_ordinary_user_can_run_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("every other test here already runs as one")
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import psycopg"], cwd="/", check=True, **nobody)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this Python is closed to ordinary users")
    folder = Path(tempfile.mkdtemp(prefix="vp-", dir="/tmp"))
    try:
        os.chown(folder, 65534, 65534)
        process = python("-c", HOLDER, str(folder), **nobody)
        server = psutil.Process(said_pid(process))
        assert server.uids().effective == 65534
        process.communicate("", timeout=60)
        assert not server.is_running()
    finally:
        shutil.rmtree(folder)


def test_a_management_command_brings_the_server_and_takes_it_away(data_dir: Path) -> None:
    from django.conf import settings

    environment = {
        **os.environ,
        "DATA_DIR": str(data_dir),
        "DATABASE_URL": "",
        "SECRET_KEY": settings.SECRET_KEY,
    }
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-c"]
    code = "from django.db import connection as c; print(c.ensure_connection() or c.pg_version)"
    result = subprocess.run(
        [*command, code], cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith("18"), result.stderr
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_who_reaches_the_socket_without_a_password_is_let_in_nowhere(data_dir: Path, tmp_path: Path) -> None:
    with hold(data_dir):
        with connect(data_dir) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (NAME,)
        passwords = connection_settings(data_dir)["OPTIONS"]["passfile"]
        assert stat.S_IMODE(Path(passwords).stat().st_mode) == 0o600
        for role in ("postgres", NAME, SERVING):
            for passfile in ("/dev/null", str(tmp_path / "nowhere")):
                with pytest.raises(psycopg.OperationalError, match="no password"):
                    connect(data_dir, user=role, dbname="postgres", passfile=passfile)
            with pytest.raises(psycopg.OperationalError, match="authentication failed"):
                connect(data_dir, user=role, dbname="postgres", password="guessed")


def test_a_folder_of_before_or_one_that_was_cut_off_asks_for_passwords_from_its_next_start(
    data_dir: Path,
) -> None:
    with hold(data_dir), connect(data_dir) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    rules = data_dir / "postgres" / "pg_hba.conf"
    for cut_off_before in ("the rules", "the passwords"):
        rules.write_text("local all all trust\n")
        if cut_off_before == "the passwords":
            (data_dir / "postgres" / "passwords").write_text("*:*:*:postgres")
        with hold(data_dir), connect(data_dir) as connection:
            connection.execute("SELECT FROM kept")
        assert "trust" not in rules.read_text()
