"""`manage.py backup` and `restore`: what comes back, into which installation, and what is refused."""

import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import web
from tests.processes import wait_for
from tests.stack import Stack
from videoplatform.embedded_postgres import hold
from videoplatform.process import BASE_DIR

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NEW_KEY = """
from accounts import api_keys
from accounts.models import User
print(api_keys.issue(user=User.objects.create_user("ada"))[1])
"""
SETTINGS = {
    "VIDEO_COOLDOWN_SECONDS": "0",
    "LEASE_SECONDS": "6",
    "NODE_HEALTH_SECONDS": "1",
    "GPU_NODE_MODEL": "tiny-random",
}
DOORS_OF_THE_LEDGER = [
    "UPDATE accounts_credittransaction SET reason = 'mine'",
    "DELETE FROM accounts_credittransaction",
    "TRUNCATE accounts_credittransaction CASCADE",
    "UPDATE accounts_creditaccount SET posted = posted + 1",
    "DELETE FROM accounts_creditaccount",
]


@dataclass
class Saved:
    """A platform that was backed up while it worked, and what it was doing. It is stopped."""

    stack: Stack
    file: Path
    headers: dict[str, str]
    clip: str
    clip_bytes: bytes
    running: str


def sql(stack: Stack, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask the stack's database, which is started for it if need be."""
    with hold(stack.data_dir), stack.connect() as connection:
        return connection.execute(statement, values).fetchall()


def submit(stack: Stack, headers: dict[str, str]) -> str:
    answer = web.post(f"{stack.url}/v1/videos", json={"prompt": "a red ball"}, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def status(stack: Stack, headers: dict[str, str], video: str) -> dict[str, Any]:
    answer: dict[str, Any] = web.get(f"{stack.url}/v1/videos/{video}", headers=headers, timeout=30).json()
    return answer


def completed(stack: Stack, headers: dict[str, str], video: str) -> None:
    def ended() -> bool:
        now = status(stack, headers, video)["status"]
        assert now != "failed", stack.log_tail()
        return bool(now == "completed")

    wait_for(ended, seconds=120, message="it did not complete", every=0.2)


def content(stack: Stack, headers: dict[str, str], video: str) -> bytes:
    return web.get(f"{stack.url}/v1/videos/{video}/content", headers=headers, timeout=30).content


def balance(stack: Stack, headers: dict[str, str]) -> int:
    answer = web.get(f"{stack.url}/v1/credits", headers=headers, timeout=30).json()
    return int(answer["balance"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("backup")
    with Stack(folder / "old", SETTINGS) as stack:
        headers = {"Authorization": f"Bearer {stack.manage('shell', '--no-imports', '-c', NEW_KEY).strip()}"}
        clip = submit(stack, headers)
        completed(stack, headers, clip)
        set_steps(stack, 200)
        running = submit(stack, headers)
        wait_for(lambda: status(stack, headers, running)["progress"] > 0, message="it does not run")
        with stack.node_held_up():
            said = stack.manage("backup", str(folder / "backup.tar"))
            assert status(stack, headers, running)["status"] == "in_progress"
        assert "the database" in said
        assert "2 files of clips" in said
        completed(stack, headers, running)
        assert balance(stack, headers) == 400
        with pytest.raises(LookupError):
            stack.pid_of("bot")  # without a token there is none to start
        clip_bytes = content(stack, headers, clip)
    yield Saved(stack, folder / "backup.tar", headers, clip, clip_bytes, running)


def set_steps(stack: Stack, steps: int) -> None:
    with stack.connect() as connection:
        connection.execute(f"UPDATE generation_preset SET num_inference_steps = {steps} WHERE name = 'quick'")


def attempts(stack: Stack, video: str) -> list[tuple[str]]:
    query = "SELECT state FROM generation_jobattempt WHERE job_id = %s ORDER BY opened_at"
    return sql(stack, query, video.removeprefix("video_"))


def refused(stack: Stack, *arguments: str) -> str:
    """Return the message of `manage.py ARGUMENTS`, which must refuse."""
    result = stack.command(*arguments)
    assert result.returncode == 1, result.stdout
    assert "Traceback" not in result.stderr
    return result.stderr


def test_the_file_is_for_its_owner_only_and_nothing_half_made_lies_beside_it(saved: Saved) -> None:
    assert stat.S_IMODE(saved.file.stat().st_mode) == 0o600
    assert sorted(path.name for path in saved.file.parent.iterdir()) == ["backup.tar", "old"]


def test_a_new_installation_goes_on_where_the_backup_was_made(saved: Saved, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "new", SETTINGS)
    assert "2 files of clips" in stack.manage("restore", str(saved.file))
    restored = [stack.data_dir / "media", *(stack.data_dir / "media").rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in restored} == {0}, "only the owner may read clips"
    assert sql(stack, "SELECT posted, held FROM accounts_creditaccount WHERE held > 0") == [(450, 50)]
    with stack:
        assert content(stack, saved.headers, saved.clip) == saved.clip_bytes
        completed(stack, saved.headers, saved.running)
        assert balance(stack, saved.headers) == 400
        stack.manage("audit_credits")
        for statement in DOORS_OF_THE_LEDGER:
            with stack.connect() as connection, pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(statement)
        # Its GPU node never heard of the first attempt.
        assert attempts(stack, saved.running) == [("lost",), ("succeeded",)]


def test_the_old_installation_goes_back_to_it_and_finds_the_clip_on_its_node(saved: Saved) -> None:
    stack = saved.stack
    why = refused(stack, "restore", str(saved.file))
    assert "The database is not empty" in why
    assert "--force" in why
    assert attempts(stack, saved.running) == [("succeeded",)]
    stack.manage("restore", "--force", str(saved.file))
    assert attempts(stack, saved.running) == [("open",)]
    with stack:
        completed(stack, saved.headers, saved.running)
        assert attempts(stack, saved.running) == [("succeeded",)]
        assert balance(stack, saved.headers) == 400
        stack.manage("audit_credits")
        assert "already runs here" in refused(stack, "restore", "--force", str(saved.file))


def test_a_database_that_others_use_is_left_alone(saved: Saved) -> None:
    with hold(saved.stack.data_dir), saved.stack.connect():
        assert "in use by 1 other connection." in refused(saved.stack, "restore", "--force", str(saved.file))


def cut_off(whole: Path, to: Path) -> None:
    to.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def without_its_end(whole: Path, to: Path) -> None:
    with tarfile.open(whole) as source, tarfile.open(to, "w") as target:
        for member in source.getmembers()[:-1]:
            target.addfile(member, source.extractfile(member))


def with_a_spoilt_dump(whole: Path, to: Path) -> None:
    body = bytearray(whole.read_bytes())
    with tarfile.open(whole) as source:
        dump = source.getmember("database.dump")
    middle = dump.offset_data + dump.size // 2
    body[middle : middle + 4000] = bytes(4000)
    to.write_bytes(body)


def no_archive(whole: Path, to: Path) -> None:
    to.write_text("not a backup")


@pytest.mark.parametrize("spoil", [cut_off, without_its_end, with_a_spoilt_dump, no_archive])
def test_a_damaged_file_is_refused_and_nothing_is_replaced(saved: Saved, tmp_path: Path, spoil: Any) -> None:
    spoil(saved.file, tmp_path / "spoilt.tar")
    with hold(saved.stack.data_dir):
        before = sql(saved.stack, "SELECT count(*), max(id) FROM accounts_credittransaction")
        assert refused(saved.stack, "restore", "--force", str(tmp_path / "spoilt.tar"))
        assert sql(saved.stack, "SELECT count(*), max(id) FROM accounts_credittransaction") == before


def test_a_file_that_is_not_there_or_cannot_be_written_is_said_plainly(saved: Saved, tmp_path: Path) -> None:
    with hold(saved.stack.data_dir):
        assert "does not exist" in refused(saved.stack, "restore", str(tmp_path / "none.tar"))
        assert "No such file or directory" in refused(saved.stack, "backup", str(tmp_path / "none" / "b.tar"))


def video_file(stack: Stack, video: str) -> Path:
    query = "SELECT video FROM generation_generationjob WHERE id = %s"
    [(name,)] = sql(stack, query, video.removeprefix("video_"))
    return Path(stack.environment["MEDIA_ROOT"]) / name


def test_a_lost_clip_does_not_stop_a_backup_but_is_named(saved: Saved, tmp_path: Path) -> None:
    file = video_file(saved.stack, saved.clip)
    file.rename(tmp_path / "aside.mp4")
    backup = begin_backup(saved.stack, tmp_path / "backup.tar")
    _, said = backup.communicate(timeout=120)
    (tmp_path / "aside.mp4").rename(file)
    assert backup.returncode == 0
    assert f"Not in MEDIA_ROOT, and so not in the backup: videos/{file.parent.name}/{file.name}" in said


def test_a_clip_that_its_owner_deletes_meanwhile_stays_deleted(saved: Saved, tmp_path: Path) -> None:
    job, file = saved.clip.removeprefix("video_"), video_file(saved.stack, saved.clip)
    with hold(saved.stack.data_dir), saved.stack.connect() as owner, saved.stack.connect() as lock:
        with lock.transaction():
            lock.execute("LOCK TABLE django_session IN ACCESS EXCLUSIVE MODE")  # pg_dump waits for it
            backup = begin_backup(saved.stack, tmp_path / "backup.tar")
            wait_for(lambda: owner.execute(WAITING).fetchall(), message="pg_dump did not come to the lock")
            owner.execute("UPDATE generation_generationjob SET deleted_at = now() WHERE id = %s", [job])
            file.unlink()
        _, said = backup.communicate(timeout=120)
    assert (backup.returncode, said) == (0, "")
    new = Stack(tmp_path / "new", SETTINGS)
    new.manage("restore", str(tmp_path / "backup.tar"))
    deleted = "SELECT deleted_at IS NOT NULL FROM generation_generationjob WHERE id = %s"
    assert sql(new, deleted, job) == [(True,)]


WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted"


def begin_backup(stack: Stack, file: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "manage.py", "backup", str(file)]
    return subprocess.Popen(
        command,
        cwd=BASE_DIR,
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
