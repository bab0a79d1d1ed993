"""Behind a pooler in transaction mode: what is lost there is said, DATABASE_LISTEN_URL mends it, one bot works.

PgBouncer at full strength (Debian's package), else a stand-in that shares sessions in the same way.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django_q.models import OrmQ
from django_q.tasks import async_task

from generation.database import alone, hears_notifications
from tests.bot_api_server import BotApiServer
from tests.fork_server import fork_server
from tests.pooler import pooler
from tests.processes import Processes, wait_for
from videoplatform import metrics

pytestmark = pytest.mark.django_db(transaction=True)

FULL = os.environ.get("CHAOS") == "full"
COMPLAINT = "NOTIFY does not arrive at"


@pytest.fixture
def pooled(database_url: str) -> Iterator[str]:
    if FULL and not shutil.which("pgbouncer"):
        pytest.fail("the full round needs PgBouncer: apt install pgbouncer")
    with pooler(connection.settings_dict, real=FULL) as url:
        yield url


@pytest.fixture(autouse=True)
def _ask_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_hearing", metrics.Hearing())


def test_notifications_that_do_not_arrive_make_the_site_not_ready(
    pooled: str, database_url: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DATABASE_LISTEN_URL = pooled
    answer = Client().get("/healthz")
    assert (answer.status_code, answer.json()["notifications"]) == (503, "failed")
    assert f"{COMPLAINT} DATABASE_LISTEN_URL" in caplog.text
    settings.DATABASE_LISTEN_URL = database_url
    assert all(hears_notifications() for _ in range(20))


@pytest.fixture
def telegram() -> Iterator[BotApiServer]:
    with BotApiServer() as server:
        yield server


def test_every_process_says_at_its_start_that_it_hears_nothing_and_of_two_bots_one_works(
    pooled: str, processes: Processes, telegram: BotApiServer
) -> None:
    environment = {"DATABASE_URL": pooled} | telegram.environment
    for command in ("run_worker", "run_reconciler", "run_bot"):
        processes.start(command, **environment)
        wait_for(lambda command=command: f"{COMPLAINT} DATABASE_URL" in processes.log(command))
    wait_for(lambda: "the bot is at work" in processes.log("run_bot"))
    first = processes.running.pop("run_bot")
    (processes.logs / "run_bot.log").rename(processes.logs / "run_bot_first.log")
    try:
        processes.start("run_bot", **environment)
        wait_for(lambda: "standing by" in processes.log("run_bot"))
        first.kill()
        wait_for(lambda: "the bot is at work" in processes.log("run_bot"))
    finally:
        first.kill()


def test_with_an_address_to_listen_at_nothing_is_missing(
    pooled: str, database_url: str, processes: Processes
) -> None:
    processes.start("run_worker", DATABASE_URL=pooled, DATABASE_LISTEN_URL=database_url)
    async_task("generation.jobs.tasks.dispatch")
    wait_for(lambda: not OrmQ.objects.exists(), message=processes.log("run_worker"))
    assert COMPLAINT not in processes.log("run_worker")


def test_a_second_migration_waits_for_the_first(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "migrate.log"
    environment = {**os.environ, "DATABASE_URL": database_url}
    with alone("migrate"):
        second = fork_server.start("migrate", environment=environment, stdout=log)
        wait_for(lambda: "another process is at it" in log.read_text())
        assert second.poll() is None
    assert second.wait(60) == 0
    assert "No migrations to apply" in log.read_text()
