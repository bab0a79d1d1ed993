"""How much, which seed, and the scorecard; and one whole platform for the tests that kill its parts.

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

from tests.bot_api_server import BotApiServer
from tests.chaos.platform import Platform
from tests.chaos.scorecard import Row, Run

FULL = os.environ.get("CHAOS") == "full"
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1, 100_000))
REPORT = os.environ.get("CHAOS_REPORT")

rows: list[Row] = []
started = time.monotonic()


def pytest_report_header() -> str:
    return f"chaos: {'full' if FULL else 'short round'}, CHAOS_SEED={SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A full round takes as long as it takes; the bars are about the product, not about this machine's patience."""
    for item in items:
        if FULL and "tests/chaos/" in str(item.fspath):
            item.add_marker(pytest.mark.timeout(2400))


def pytest_sessionfinish() -> None:
    if REPORT and rows:
        memory = psutil.virtual_memory().total / 2**30
        machine = f"{os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}"
        Run(seed=SEED, seconds=time.monotonic() - started, machine=machine, rows=rows).write(Path(REPORT))


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


@pytest.fixture(scope="session")
def platform_under_fire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything `make run` starts, with a bot, small clips and no cooldown."""
    with BotApiServer() as telegram, Platform(tmp_path_factory.mktemp("chaos"), telegram) as running:
        yield running
