"""Fixtures for every test: a real PostgreSQL, people, a node, and a job brought to its end through the lifecycle."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings as django_settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import connection
from django.test import Client, TransactionTestCase
from django.utils import timezone

from tests import leftovers, preforked
from tests.clips import write_clip
from tests.databases import copy_of_the_template
from tests.emptying import Emptying
from tests.fork_server import fork_server
from tests.processes import Processes
from tests.signing_in import signed_in

# `make test SHUFFLE=7` runs the tests in an order that this number stands for.
SHUFFLE = os.environ.get("SHUFFLE")
# Files that are worked off by one process, because they share something that is dear to start.
TOGETHER = {
    "one platform and browsers": (
        "tests/e2e/test_browser_staff.py",
        "tests/e2e/test_browser.py",
        "tests/e2e/test_browser_live.py",
        "tests/e2e/test_pages.py",
        "tests/e2e/test_telegram.py",
    ),
    "one platform under fire": ("tests/chaos/test_process_kills.py", "tests/chaos/test_bad_input.py"),
    "one GPU node": (
        "tests/gpu_node/test_canceling.py",
        "tests/gpu_node/test_field_protocol.py",
        "tests/gpu_node/test_models.py",
        "tests/gpu_node/test_starting.py",
        "tests/gpu_node/test_videos_api.py",
    ),
}
# What takes a minute or more by itself, most of it spent waiting; the longest first. Begun last, it would keep one
# process busy while the others have nothing left.
SLOW = (
    *TOGETHER["one platform and browsers"],
    "tests/e2e/test_graceful_stop.py",
    *TOGETHER["one platform under fire"],
    "tests/e2e/test_backup.py",
    "tests/e2e/",
    "tests/chaos/",
    "tests/bot/test_process.py",
    "tests/test_cluster.py",
    "tests/test_schema.py",
)


def pytest_report_header() -> str | None:
    return f"shuffled: SHUFFLE={SHUFFLE}" if SHUFFLE else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first (xdist keeps this order: --no-loadscope-reorder). Or, to see that no test needs another: the
    files in any order, and the tests of each in any order.
    """

    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(SLOW) if item.nodeid.startswith(start)), len(SLOW))

    if not SHUFFLE:
        items.sort(key=place)
        return
    dice = random.Random(SHUFFLE)
    dice.shuffle(items)
    files = list({_file_of(item.nodeid): None for item in items})
    groups = list({_group_of(file): None for file in files})
    dice.shuffle(groups)
    items.sort(
        key=lambda item: (groups.index(_group_of(_file_of(item.nodeid))), files.index(_file_of(item.nodeid)))
    )


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _group_of(file: str) -> str:
    return next((name for name, files in TOGETHER.items() if file in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the work as --dist=loadfile does, but keep together what belongs together.

    Every second process begins at the end of the list: whole platforms want more than their share of the machine, and
    most other tests wait for something.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _assign_work_unit(self, node: Any) -> None:
            if int(node.gateway.id.removeprefix("gw")) % 2:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid: str) -> str:
            return _group_of(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


left_running: list[str] = []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing of the run goes on when it is over."""
    from generation.media.sandbox import decoders

    decoders.stop()
    fork_server.stop()
    preforked.let_go()
    if hasattr(session.config, "workerinput"):
        return
    left_running.extend(leftovers.end(session.config._tmp_path_factory.getbasetemp()))
    if left_running:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED  # also where all tests passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left_running:
        terminalreporter.section("left running, and killed", red=True)
        for command in left_running:
            terminalreporter.line(command)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> Iterator[None]:
    """Hold the embedded PostgreSQL for the session; a server that DATABASE_URL names is there by itself."""
    from videoplatform import embedded_postgres

    if not django_settings.EMBEDDED_POSTGRES:
        yield
        return
    # Tests make databases and empty tables: as the owner. Whole platforms have both roles, as they do for people.
    connection.settings_dict.update(django_settings.DATABASE_OWNER)
    with embedded_postgres.hold(django_settings.DATA_DIR):
        yield


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_modify_db_settings: None, django_db_blocker: Any
) -> Iterator[None]:
    """The test database; what a transactional test wrote there is taken out again by `Emptying`."""
    with ExitStack() as database:
        with django_db_blocker.unblock():
            database.enter_context(copy_of_the_template())
            empty = Emptying()
        original = TransactionTestCase._fixture_teardown
        TransactionTestCase._fixture_teardown = lambda _: empty()
        yield
        TransactionTestCase._fixture_teardown = original
        with django_db_blocker.unblock():
            database.close()


@pytest.fixture(scope="session", autouse=True)
def _somewhere_for_static_files() -> None:
    """Whitenoise complains at each client that is made while there is no such folder."""
    Path(django_settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)


@pytest.fixture(autouse=True)
def _settings_for_tests(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }


@pytest.fixture
def database_url(transactional_db: None) -> str:
    """The test database, for child processes: what is written there must be committed, hence transactional."""
    parameters = connection.settings_dict
    password = f":{quote(parameters['PASSWORD'], safe='')}" if parameters["PASSWORD"] else ""
    host = quote(parameters["HOST"], safe="")
    port = f":{parameters['PORT']}" if parameters["PORT"] else ""
    passwords = f"?passfile={quote(passfile)}" if (passfile := parameters["OPTIONS"].get("passfile")) else ""
    return f"postgresql://{parameters['USER']}{password}@{host}{port}/{parameters['NAME']}{passwords}"


@pytest.fixture
def processes(database_url: str, settings: Any, tmp_path: Path) -> Iterator[Processes]:
    """Start background processes against the test database; what still runs at the end is stopped."""
    started = Processes(
        database_url=database_url,
        media_root=settings.MEDIA_ROOT,
        logs=tmp_path,
        NODE_HEALTH_SECONDS="0.5",
        LEASE_SECONDS="3",
    )
    yield started
    started.stop_all()


@pytest.fixture
def make_user(db: None) -> Callable[..., Any]:
    """Users by name; each has the sign-up credits."""
    from accounts.models import User

    def make(username: str = "ada", **fields: Any) -> User:
        return User.objects.create_user(username=username, password="a long enough password", **fields)

    return make


@pytest.fixture
def user(make_user: Callable[..., Any]) -> Any:
    return make_user()


@pytest.fixture
def staff(make_user: Callable[..., Any]) -> Any:
    return make_user("grace", is_staff=True, is_superuser=True)


@pytest.fixture
def browser(user: Any) -> Client:
    """The user's browser, signed in a moment ago."""
    return signed_in(user)


@pytest.fixture
def submit(user: Any) -> Callable[..., Any]:
    """Submit a prompt as the dashboard does."""
    from generation.jobs import submission

    def make(prompt: str = "A red fox", *, owner: Any = user, **options: Any) -> Any:
        return submission.submit(user=owner, prompt=prompt, source="web", **options)

    return make


@pytest.fixture
def node(db: None) -> Any:
    """A node that was just heard of; nothing listens at its address."""
    from generation.models import GpuNode

    return GpuNode.objects.create(
        name="node-1",
        base_url="http://127.0.0.1:9",
        api_key="node-key",
        detected_protocol="videos",
        status="ready",
        backend="CogVideoX-tiny",
        last_seen_at=timezone.now(),
    )


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playable MP4 of 16 frames, 96×64 pixels, 8 frames a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def start_job(node: Any) -> Callable[[Any], Any]:
    """Bring a queued job onto the node; returns its open attempt, whose lease is held by the attempt's own id."""
    from generation.jobs import locks, scheduling
    from generation.models import GpuNode

    def start(job: Any) -> Any:
        # However long the test took so far: what is silent for half a minute gets no jobs.
        GpuNode.objects.filter(pk=node.pk).update(last_seen_at=timezone.now())
        [attempt] = scheduling.claim(1)
        assert attempt.job_id == job.pk, "another job was queued before this one"
        assert locks.take(attempt_id=attempt.pk, token=attempt.pk)
        return attempt

    return start


@pytest.fixture
def finish_job(start_job: Callable[[Any], Any], clip: Path) -> Callable[[Any], Any]:
    """Bring a queued job to COMPLETED with a real clip in the storage, as the tasks would."""
    from generation import media
    from generation.jobs import lifecycle, stored_files
    from generation.models import GenerationJob

    def finish(job: GenerationJob) -> GenerationJob:
        attempt = start_job(job)
        assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk, generation_ms=28300)
        poster = clip.with_name("poster.jpg")
        facts = media.prepare(clip, clip.with_name("playable.mp4"), poster)
        files = (
            default_storage.save(f"videos/{job.id.hex}.mp4", File(clip.open("rb"))),
            default_storage.save(f"posters/{job.id.hex}.jpg", File(poster.open("rb"))),
        )
        stored_files.announce(files)
        assert lifecycle.complete(attempt_id=attempt.pk, files=files, facts=facts)
        job.refresh_from_db()
        return job

    return finish
