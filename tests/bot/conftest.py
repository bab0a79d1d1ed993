"""One bot for most tests; a test that hurts it starts its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bot.bot_process import Bot, inbox_is_empty, people
from tests.bot_api_server import BotApiServer
from tests.processes import Processes, wait_for


@pytest.fixture(scope="package")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(autouse=True)
def _shared_media_root(settings: Any, media_root: Path) -> None:
    """The bot reads what the tests store, and it outlives a test."""
    settings.MEDIA_ROOT = media_root


def _processes(database_url: str, media_root: Path, logs: Path) -> Processes:
    return Processes(
        database_url=database_url,
        media_root=media_root,
        logs=logs,
        VIDEO_COOLDOWN_SECONDS="0",
        SITE_URL="https://videos.example.org",
    )


@pytest.fixture(scope="package")
def _shared_bot(media_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bot]]:
    bots: list[Bot] = []
    yield bots
    for bot in bots:
        bot.processes.stop_all()
        bot.telegram.__exit__()


@pytest.fixture
def bot(database_url: str, _shared_bot: list[Bot], media_root: Path) -> Iterator[Bot]:
    """A bot that is at work. It goes on from test to test: the tables are emptied under it, the connections stay. What
    it was told is done before that, so that it writes nothing into the tables of a later test.
    """
    if not _shared_bot:
        processes = _processes(database_url, media_root, media_root)
        _shared_bot.append(Bot(BotApiServer().__enter__(), processes))
        _shared_bot[0].start()
    [bot] = _shared_bot
    assert bot.process.poll() is None, bot.log
    bot.telegram.reset()
    yield bot
    bot.telegram.heal()
    bot.telegram.release()
    wait_for(lambda: not bot.telegram.unacknowledged() and inbox_is_empty(), message=bot.log)


@pytest.fixture
def own_bot(database_url: str, media_root: Path, tmp_path: Path) -> Iterator[Bot]:
    """A bot of the test's own, not started yet."""
    # Another bot than the shared one, which goes on working meanwhile.
    with BotApiServer(token=f"{next(people)}:for-tests-only-{next(people)}-AAAAAAAAAAAAAAAAA") as telegram:
        bot = Bot(telegram, _processes(database_url, media_root, tmp_path))
        yield bot
        bot.processes.stop_all()


@pytest.fixture
def ada() -> int:
    """A person who never wrote before."""
    return next(people)
