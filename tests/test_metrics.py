"""`/metrics`: what Prometheus reads, and who may."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode, JobAttempt, RunningTotal

pytestmark = pytest.mark.django_db


def read(**headers: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, these in the order of their names."""
    answer = Client().get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.content
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.content.decode())
    return {
        (
            sample.name.removeprefix("videoplatform_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def submit(user: Any, **fields: Any) -> GenerationJob:
    return submission.submit(user=user, prompt="a red ball", source="api", **fields)


def test_jobs_credits_and_nodes_are_reported(settings, user, make_user, node, start_job, finish_job):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    finish_job(submit(user))
    attempt = start_job(submit(user))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, token=attempt.pk, code="generation_failed", message="no", error="no"
    )
    running = start_job(submit(user))
    JobAttempt.objects.filter(pk=running.pk).update(silent_since=Now())
    waiting = submit(make_user("bob"))
    GenerationJob.objects.filter(pk=waiting.pk).update(created_at=Now() - timedelta(minutes=2))
    figures = read()
    assert [figures["jobs", state] for state in ("queued", "running", "storing")] == [1, 1, 0]
    assert figures["jobs_ended_total", "", "completed"] == 1
    assert figures["jobs_ended_total", "generation_failed", "failed"] == 1
    assert 119 < figures["queue_oldest_seconds",] < 300
    assert figures["credits_moved_total", "reserve"] == 200
    assert (figures["credits_moved_total", "capture"], figures["credits_moved_total", "release"]) == (50, 50)
    assert (figures["credits_owned",], figures["credits_held",]) == (950, 100)
    assert [figures[f"node_{fact}", "node-1"] for fact in ("ready", "enabled", "set_aside")] == [1, 1, 0]
    assert [figures[f"node_{fact}", "node-1"] for fact in ("open_attempts", "silent_attempts")] == [1, 1]
    assert figures["node_failures_in_a_row", "node-1"] == 1
    assert figures["tasks",] > 0
    assert figures["telegram_backlog",] == 0


def test_a_node_that_is_gone_is_not_ready(node):
    GpuNode.objects.update(last_seen_at=Now() - timedelta(minutes=5))
    figures = read()
    assert figures["node_ready", "node-1"] == 0
    assert figures["node_heard_seconds", "node-1"] == pytest.approx(300, abs=30)
    assert figures["reconciler_heard_seconds",] == pytest.approx(300, abs=30)


def test_past_totals_are_kept_and_later_rows_are_added_to_them(settings, user, node, finish_job):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    long_ago = Now() - timedelta(days=3)

    def totals() -> tuple[float, float]:
        figures = read()
        return figures["jobs_ended_total", "", "completed"], figures["credits_moved_total", "capture"]

    GenerationJob.objects.filter(pk=finish_job(submit(user)).pk).update(finished_at=long_ago)
    assert totals() == (1, 50)
    kept = RunningTotal.objects.get(name="jobs_ended")
    assert kept.numbers == [["completed", "", 1]]
    finish_job(submit(user))
    assert totals() == (2, 100)
    # A day later: what came since is kept, too, and counted once.
    GenerationJob.objects.filter(finished_at__gt=kept.until).update(finished_at=Now() - timedelta(hours=2))
    RunningTotal.objects.update(until=Now() - timedelta(days=2))
    assert totals()[0] == 2
    assert RunningTotal.objects.get(name="jobs_ended").numbers == [["completed", "", 2]]
    assert totals()[0] == 2
    # Rows behind it are not looked at any more.
    GenerationJob.objects.update(finished_at=long_ago)
    assert totals()[0] == 2


def test_an_empty_installation_has_metrics_too():
    figures = read()
    assert (figures["jobs", "queued"], figures["queue_oldest_seconds",], figures["credits_owned",]) == (
        0,
        0,
        0,
    )


def test_the_number_of_queries_does_not_grow_with_nodes_and_jobs(
    user, node, settings, django_assert_max_num_queries
):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    for number in range(5):
        submit(user)
        GpuNode.objects.create(name=f"more-{number}", base_url=f"http://10.0.0.{number}")
    read()  # the first one ever also keeps what lies behind
    with django_assert_max_num_queries(20):
        read()


@pytest.mark.parametrize(
    "request_from",
    [
        {"REMOTE_ADDR": "10.1.2.3"},
        {"REMOTE_ADDR": ""},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
    ],
)
def test_without_a_token_only_this_machine_may_read(request_from):
    assert Client(**request_from).get("/metrics").status_code == 404


def test_behind_a_proxy_a_token_is_required(settings):
    settings.BEHIND_PROXY = True
    assert Client().get("/metrics").status_code == 404


@pytest.mark.parametrize("said", ["", "Bearer wrong", "Bearer sécret", "secret", "Basic c2VjcmV0"])
def test_a_token_is_required_once_it_is_set_and_works_from_any_address(settings, said):
    settings.METRICS_TOKEN = "secret"
    assert Client().get("/metrics", headers={"Authorization": said}).status_code == 404
    elsewhere = Client(REMOTE_ADDR="10.1.2.3", HTTP_X_FORWARDED_FOR="10.9.9.9")
    assert elsewhere.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_database_that_is_away_is_answered_with_503(monkeypatch):
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("the server is gone")

    monkeypatch.setattr(connection, "cursor", away)
    assert Client().get("/metrics").status_code == 503
