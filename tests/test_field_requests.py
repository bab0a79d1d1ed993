"""The one long request to a field node: its answer comes once, and must not be lost to a database that is away."""

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError
from django.utils import timezone

from generation.jobs import lifecycle, locks, scheduling, submission
from generation.jobs.runner import AttemptRunner
from generation.models import GenerationJob, GpuNode, JobAttempt
from tests.field_node import FieldNode

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def field_node() -> Iterator[FieldNode]:
    with FieldNode.start(fault="slow:2") as running:
        yield running


@pytest.fixture
def attempt(user: Any, node: GpuNode, field_node: FieldNode) -> JobAttempt:
    GpuNode.objects.update(
        base_url=field_node.url, api_key=field_node.key, detected_protocol="generate_video"
    )
    submission.submit(user=user, prompt="a red ball", source="api")
    assert scheduling.claim(1)
    return JobAttempt.objects.select_related("job", "node").get()


class Away:
    """A function that finds the database away in some of its calls."""

    def __init__(self, function: Callable[..., Any], *, in_calls: range) -> None:
        self._function, self._in_calls = function, in_calls
        self.calls = 0

    def __call__(self, *args: Any, **values: Any) -> Any:
        self.calls += 1
        if self.calls in self._in_calls:
            raise OperationalError("the server closed the connection")
        return self._function(*args, **values)


def test_the_answer_waits_for_the_database_and_the_lease_is_renewed_after_it(
    attempt: JobAttempt, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LEASE_SECONDS = 1
    monkeypatch.setattr("generation.database.delay", lambda *_, **__: 0.1)
    write, renew = (
        Away(lifecycle.begin_storing, in_calls=range(1, 4)),
        Away(locks.take, in_calls=range(2, 3)),
    )
    token = uuid.uuid4()
    assert locks.take(attempt_id=attempt.pk, token=token)
    monkeypatch.setattr("generation.jobs.runner.lifecycle.begin_storing", write)
    monkeypatch.setattr("generation.jobs.runner.locks.take", renew)
    async_to_sync(AttemptRunner(attempt, token=token).run)()
    job = GenerationJob.objects.get()
    assert (job.state, job.attempt_count, write.calls) == ("storing", 1, 4)
    assert renew.calls > 2


def test_neither_node_nor_job_is_blamed_for_a_request_that_our_own_end_cut_off(
    attempt: JobAttempt, settings: Any
) -> None:
    settings.JOB_MAX_ATTEMPTS = 1
    token = uuid.uuid4()
    assert locks.take(attempt_id=attempt.pk, token=token)
    assert lifecycle.request_sent(attempt_id=attempt.pk, token=token)
    attempt.posted_at = timezone.now()
    async_to_sync(AttemptRunner(attempt, token=token).run)()
    attempt.refresh_from_db()
    job, node = GenerationJob.objects.get(), GpuNode.objects.get()
    assert (attempt.state, job.state, job.current_attempt, job.attempt_count) == ("lost", "queued", None, 0)
    assert (node.consecutive_failures, node.leave_alone_until, node.set_aside_at) == (0, None, None)


def test_a_page_in_the_nodes_place_costs_no_attempt(attempt: JobAttempt, field_node: FieldNode) -> None:
    """A proxy answers for a second; then the node itself does."""
    token = uuid.uuid4()
    assert locks.take(attempt_id=attempt.pk, token=token)
    field_node.set_fault("html200")
    healing = threading.Timer(1.0, field_node.set_fault, ["none"])
    healing.start()
    async_to_sync(AttemptRunner(attempt, token=token).run)()
    healing.join()
    job, node = GenerationJob.objects.get(), GpuNode.objects.get()
    assert (job.state, job.attempt_count, node.consecutive_failures) == ("storing", 1, 0)
