"""Extent, seed and scorecard; and one whole platform for the tests that kill its parts.

CHAOS=full is what `make chaos` sets; anything else is the short round of `make test`. CHAOS_SEED replays a run.
"""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connection
from django.utils import timezone

from accounts import ledger
from generation.models import GenerationJob
from tests.bot_api_server import BotApiServer
from tests.chaos.platform import Platform
from tests.chaos.scorecard import Row, Run, present_commit
from tests.environment import REPOSITORY

FULL = os.environ.get("CHAOS") == "full"
# The short round is the same every time: a change is to blame for what goes red there, not the dice.
SEED = int(os.environ.get("CHAOS_SEED") or (random.SystemRandom().randrange(1, 100_000) if FULL else 1))
REPORT = os.environ.get("CHAOS_REPORT")

rows: list[Row] = []
started = time.monotonic()
commit = present_commit(REPOSITORY)


def pytest_report_header() -> str:
    return f"chaos: {'full' if FULL else 'short round'}, CHAOS_SEED={SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A full round takes as long as it takes; the bars are about the product, not about this machine's patience."""
    for item in items:
        if FULL and "tests/chaos/" in str(item.fspath):
            item.add_marker(pytest.mark.timeout(2400))


def pytest_sessionfinish() -> None:
    """Each process of a run that is split among several leaves its part; `scorecard` puts them together."""
    if REPORT and rows:
        memory = psutil.virtual_memory().total / 2**30
        machine = f"{os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}"
        part = os.environ.get("PYTEST_XDIST_WORKER", "whole")
        seconds = time.monotonic() - started
        run = Run(seed=SEED, seconds=seconds, machine=machine, rows=rows, commit=commit)
        run.write(Path(REPORT) / part)


@pytest.fixture
def amount() -> Callable[[int, int], int]:
    """`amount(500, 12)`: the first in a full run, the second in a short round."""
    return lambda full, short: full if FULL else short


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The source of every choice of a test: the same seed gives the same plan."""
    return random.Random(f"{SEED}:{request.node.name}")


@pytest.fixture
def score() -> Callable[..., Row]:
    """Put a row on the scorecard. It counts as missed until the test sets `result` and `passed` at its very end."""

    def add(row: str, **columns: Any) -> Row:
        entry = Row(row=row, **columns)
        rows.append(entry)
        return entry

    return add


@pytest.fixture(autouse=True)
def _sabotage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a guard away, for tests/chaos/test_negative_controls.py."""
    guard = os.environ.get("SABOTAGE")
    if guard == "fencing":
        monkeypatch.setattr("generation.jobs.lifecycle.complete", _complete_unfenced)
    elif guard == "unique_index":
        request.getfixturevalue("db")
        with connection.cursor() as cursor:
            cursor.execute("DROP INDEX one_resolution_per_hold")


def _complete_unfenced(*, attempt_id: Any, files: tuple[str, str], facts: Any) -> bool:
    """Complete the job without the conditions of `lifecycle.complete`: any file is believed."""
    job = GenerationJob.objects.get(attempts=attempt_id)
    GenerationJob.objects.filter(pk=job.pk).update(
        state="completed", video=files[0], finished_at=timezone.now()
    )
    ledger.capture(reference=job.pk, reason="Video completed")
    return True


@pytest.fixture(scope="package")
def platform_under_fire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything `make run` starts, with a bot, small clips and no cooldown."""
    with BotApiServer() as telegram, Platform(tmp_path_factory.mktemp("chaos"), telegram) as running:
        yield running
