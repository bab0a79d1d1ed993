"""Extent and table; the platform that is attacked, as it is delivered, and a customer who uses it meanwhile.

ATTACK=full is what `make attack` sets, and there the customer's pages have a bar; anything else is the short round of
`make test`. All traffic stays on the loopback interface: each attack comes from an address of 127.0.0.0/8 of its own.
"""

import os
import platform as machine
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.attack.customer import Customer
from tests.attack.report import Row
from tests.bot_api_server import BotApiServer
from tests.chaos.scorecard import present_commit
from tests.environment import REPOSITORY
from tests.stack import Stack

FULL = os.environ.get("ATTACK") == "full"
REPORT = os.environ.get("ATTACK_REPORT")
QUIET_SECONDS = 5.0 if FULL else 1.0

PEOPLE = """
from django.contrib.auth import SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY
from django.conf import settings
from accounts.auth import SessionStore
from accounts.models import User
for name in ("customer", "victim"):
    user = User.objects.create_user(name, password="a long enough password")
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[-1]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    print(session.session_key)
"""


class Target(Stack):
    """What `make run` starts, with a bot. All settings are as delivered, but the model is the smallest."""

    def __init__(self, folder: Path, telegram: BotApiServer) -> None:
        self.telegram = telegram
        ours = {"GPU_NODE_MODEL": "tiny-random", "WEB_PROCESSES": "2" if FULL else "1"}
        ours["SIGNUP_GRANTS_PER_NETWORK"] = (
            "5"  # as delivered; other tests sign up in numbers from one address
        )
        super().__init__(folder, {**telegram.environment, **ours})

    def __enter__(self) -> "Target":
        super().__enter__()
        self.sql("UPDATE generation_preset SET num_frames = 9, num_inference_steps = 2")
        self.customer, self.victim = self.manage("shell", "--no-imports", "-c", PEOPLE).split()
        return self

    def web_processes(self) -> list[psutil.Process]:
        return self.family_of(psutil.Process(self.pid_of("web")), recursive=False)

    def credits_made(self) -> int:
        """Return the credits that all people were given so far."""
        [[given]] = self.sql(
            "SELECT coalesce(sum(posted_delta), 0) FROM accounts_credittransaction WHERE kind = 'grant'"
        )
        return int(given)


@pytest.fixture
def amount() -> Callable[[int, int], int]:
    """`amount(300, 30)`: the first in a full run, the second in a short round."""
    return lambda full, short: full if FULL else short


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with BotApiServer() as telegram, Target(tmp_path_factory.mktemp("attack"), telegram) as running:
        yield running


@pytest.fixture
def attack(request: pytest.FixtureRequest, target: Target) -> Iterator[Callable[..., object]]:
    """`with attack("guesses", tried="…") as row:` a customer is on the site meanwhile; `row.held` says what held."""
    customer = Customer(target.url, target.customer)

    @contextmanager
    def begin(name: str, tried: str) -> Iterator[Row]:
        row = Row(attack=name, tried=tried)
        try:
            customer.look_around(QUIET_SECONDS)
            with customer.on_the_site() as stay:
                yield row
            row.meanwhile = customer.compare(stay)
            if FULL:  # the short round times nothing
                assert customer.was_served(stay), row.meanwhile
            else:
                assert not stay.failures, row.meanwhile
            row.passed = True
        finally:
            if REPORT:
                row.write(Path(REPORT))

    yield begin


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FULL and "tests/attack/" in str(item.fspath):
            item.add_marker(pytest.mark.timeout(900))


def pytest_sessionfinish() -> None:
    if REPORT:
        cores, memory = os.cpu_count(), psutil.virtual_memory().total / 2**30
        about = (
            f"`make attack` at commit {present_commit(REPOSITORY)}, on {cores} cores, {memory:.0f} GB, "
            f"Python {machine.python_version()}; attackers, customer and service share the machine."
        )
        Path(REPORT).mkdir(parents=True, exist_ok=True)
        (Path(REPORT) / "about.txt").write_text(about)
