"""An error in one part of the reconciler stops no other part, is logged once, and is made up for when it is over."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django_q.models import OrmQ
from django_q.signing import SignedPackage

from generation.database import in_database
from generation.jobs import lifecycle, scheduling, stored_files, submission
from generation.jobs.events import CHANNEL
from generation.jobs.runner import AttemptRunner
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.reconciler import Reconciler
from tests.videos_server import VideosServer

pytestmark = pytest.mark.django_db(transaction=True)

PATIENCE = 60.0


class NeverSeenBefore(Exception):
    """An error of a kind that nobody thought of."""


FAULTS = {
    "a bug": NeverSeenBefore("out of the blue"),
    "the database": OperationalError("the server closed the connection"),
}


@dataclass
class Duty:
    """One thing the reconciler has to do: the function it needs for it, and how to see that it was done."""

    function: str
    done: Callable[[], bool]
    named: str = ""


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.reconciler.SWEEP_SECONDS", 0.1)


@pytest.fixture(scope="module")
def server() -> Iterator[VideosServer]:
    with VideosServer.start(seconds=300) as running:  # a clip it makes would wake the dispatch on its own
        yield running


@pytest.fixture
def duties(settings: Any, user: Any, node: GpuNode, server: VideosServer) -> dict[str, Duty]:
    """Everything that can be waiting to be done, at once."""
    settings.VIDEO_COOLDOWN_SECONDS = 0
    settings.NODE_HEALTH_SECONDS = 0.2
    settings.JOB_DEADLINE_SECONDS = 3600
    GpuNode.objects.update(capacity=5, base_url=server.url, api_key=server.key)

    def attempt(state: str) -> JobAttempt:
        job = submission.submit(user=user, prompt=state, source="api")
        [opened] = scheduling.claim(1)
        assert opened.job_id == job.pk
        return opened

    overdue = submission.submit(user=user, prompt="overdue", source="api")
    GenerationJob.objects.filter(pk=overdue.pk).update(deadline_at=Now() - timedelta(seconds=1))
    running = attempt("running")
    JobAttempt.objects.update(lease_expires_at=Now() - timedelta(seconds=1))
    submission.submit(user=user, prompt="queued", source="api")
    stored_files.let_go(["videos/left.mp4"])
    GpuNode.objects.create(name="unheard", base_url="http://127.0.0.1:9/b", enabled=False)
    OrmQ.objects.all().delete()
    return {
        "deadlines": Duty(
            "generation.jobs.lifecycle.expire",
            lambda: GenerationJob.objects.get(pk=overdue.pk).state == "failed",
            named=overdue.id.hex,
        ),
        "followers": Duty(
            "generation.reconciler._unfollowed_attempts",
            lambda: JobAttempt.objects.get(pk=running.pk).lease_token != running.pk,
        ),
        "files": Duty("generation.jobs.stored_files.due", lambda: queued("remove_files")),
        "nodes": Duty(
            "generation.reconciler.node_health.examine",
            lambda: GpuNode.objects.get(name="unheard").status == "unreachable",
            named="node unheard",
        ),
        "the list of nodes": Duty(
            "generation.reconciler._nodes_to_watch",
            lambda: GpuNode.objects.get(name="unheard").status == "unreachable",
        ),
    }


def queued(task: str, *args: uuid.UUID) -> bool:
    """Such a task is in the queue."""
    wanted = (f"generation.jobs.tasks.{task}", tuple(str(arg) for arg in args))
    tasks = [SignedPackage.loads(row.payload) for row in OrmQ.objects.all()]
    return wanted in [(found["func"], tuple(found["args"])) for found in tasks]


async def until(check: Callable[[], bool], running: "asyncio.Task[None]", what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await in_database(check)():
        assert not running.done(), f"the reconciler ended before: {what}"
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        await asyncio.sleep(0.05)


def broken_function(error: Exception) -> tuple[Callable[..., Any], Callable[[], int]]:
    calls = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal calls
        calls += 1
        raise error

    return fail, lambda: calls


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("victim", ["deadlines", "followers", "files", "nodes", "the list of nodes"])
def test_one_part_that_fails_stops_no_other_and_is_made_up_for(
    duties: dict[str, Duty], victim: str, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    fail, calls = broken_function(FAULTS[fault])
    watched = {"nodes", "the list of nodes"}
    others = [name for name in duties if name != victim and not {name, victim} <= watched]

    async def live_through_it() -> None:
        reconciler = Reconciler()
        running = asyncio.create_task(reconciler.run())
        try:
            for name in others:
                await until(duties[name].done, running, name)
            await until(lambda: calls() >= 3, running, f"{victim} was tried again")
            assert not await in_database(duties[victim].done)()
            broken.undo()
            await until(duties[victim].done, running, victim)
        finally:
            reconciler.stop()
            await running

    with caplog.at_level(logging.INFO, "generation.reconciler"), monkeypatch.context() as broken:
        broken.setattr(duties[victim].function, fail)
        async_to_sync(live_through_it)()
    told = [
        record
        for record in caplog.records
        if str(FAULTS[fault]) in record.getMessage() + str(record.exc_info)
    ]
    assert told
    about = [record for record in told if duties[victim].named in record.getMessage()]
    assert len(about) == 1, "a trouble that lasts is told once"
    assert bool(about[0].exc_info) == (fault == "a bug")


def test_an_attempt_that_cannot_be_followed_is_named_with_its_job_and_stops_no_other(
    duties: dict[str, Duty], user: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    bad = JobAttempt.objects.get(job__prompt="running")
    followed = AttemptRunner.run

    async def fail(self: AttemptRunner) -> None:
        if self.attempt.pk == bad.pk:
            raise NeverSeenBefore("out of the blue")
        await followed(self)

    monkeypatch.setattr(AttemptRunner, "run", fail)

    async def live_through_it() -> None:
        reconciler = Reconciler()
        running = asyncio.create_task(reconciler.run())
        try:
            await until(lambda: bad.pk.hex in caplog.text, running, "it was told")
            for name in ("deadlines", "files", "nodes"):
                await until(duties[name].done, running, name)
        finally:
            reconciler.stop()
            await running

    async_to_sync(live_through_it)()
    broke = next(record for record in caplog.records if bad.pk.hex in record.getMessage() and record.exc_info)
    assert f"job {bad.job_id.hex}" in broke.getMessage()


def test_rubbish_among_the_events_is_passed_over(user: Any, node: GpuNode, caplog: Any) -> None:
    job = submission.submit(user=user, prompt="a red ball", source="api")

    def say(payload: str) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
        return True

    async def live_through_it() -> None:
        reconciler = Reconciler()
        running = asyncio.create_task(reconciler.run())
        try:
            event = '{"job": "x", "user": 1, "state": "running", "step": 0, "steps": 1, "attempt": "no uuid"}'
            await until(lambda: say(event) and "hearing of events broke" in caplog.text, running, "told")
            await until(lambda: say("[]") and "not an event of ours" in caplog.text, running, "told, too")
            await in_database(GenerationJob.objects.update)(deadline_at=Now() - timedelta(seconds=1))
            await until(lambda: not GenerationJob.objects.get(pk=job.pk).is_live, running, "it went on")
        finally:
            reconciler.stop()
            await running

    async_to_sync(live_through_it)()


def test_a_cancel_that_no_event_told_of_reaches_the_node_all_the_same(
    duties: dict[str, Duty], server: VideosServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_one = JobAttempt.objects.select_related("job").get(job__prompt="running")

    def told_to_stop() -> bool:
        remote = JobAttempt.objects.get(pk=running_one.pk).remote_id
        return any(asked["path"] == f"/v1/videos/{remote}/cancel" for asked in server.requests())

    def cancel_unheard() -> None:
        with monkeypatch.context() as nobody_hears:
            nobody_hears.setattr("generation.jobs.events.publish", lambda job: None)
            lifecycle.cancel(job=running_one.job)

    async def live_through_it() -> None:
        reconciler = Reconciler()
        running = asyncio.create_task(reconciler.run())
        try:
            await until(lambda: bool(JobAttempt.objects.get(pk=running_one.pk).remote_id), running, "posted")
            await in_database(cancel_unheard)()
            await until(told_to_stop, running, "the node was told")
        finally:
            reconciler.stop()
            await running

    async_to_sync(live_through_it)()
