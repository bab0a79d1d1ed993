"""From a queued job to a stored clip through the real worker and reconciler, against nodes of both protocols."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode, JobAttempt
from tests.clips import facts_of
from tests.field_node import FieldNode
from tests.processes import Processes, wait_for
from tests.videos_server import VideosServer

pytestmark = pytest.mark.django_db(transaction=True)


def submit(user: Any, prompt: str = "a red ball", **fields: Any) -> GenerationJob:
    return submission.submit(user=user, prompt=prompt, source="api", **fields)


def ended(job: GenerationJob) -> GenerationJob:
    """The job once it is over; the worker and the reconciler do the rest."""

    def look() -> bool:
        job.refresh_from_db()
        return not job.is_live

    wait_for(look, message=f"{job.state} after a minute")
    return job


def add_node(url: str, key: str, **fields: Any) -> GpuNode:
    return GpuNode.objects.create(name=fields.pop("name", "node"), base_url=url, api_key=key, **fields)


@pytest.fixture
def running(processes: Processes) -> Processes:
    processes.start("run_worker")
    processes.start("run_reconciler")
    return processes


def balance(user: Any) -> tuple[int, int]:
    user.credit_account.refresh_from_db()
    return user.credit_account.posted, user.credit_account.held


def test_a_field_node_that_speaks_only_its_own_protocol_makes_a_clip_that_is_charged_once(user, running):
    with FieldNode.start() as field:
        add_node(field.url, field.key)
        job = ended(submit(user))
    assert (job.state, job.error_message) == ("completed", "")
    facts = facts_of(Path(job.video.path))
    assert (facts.codec, facts.frames, facts.fps) == ("h264", 16, 8)
    assert job.poster
    assert balance(user) == (450, 0)
    assert lifecycle.receipt(job) == {"reserved": 50, "captured": 50, "released": 0, "refunded": 0}
    assert GpuNode.objects.get().effective_protocol == "generate_video"


def test_a_server_of_the_videos_protocol_without_idempotency_progress_or_cancel_makes_a_clip(user, running):
    with VideosServer.start() as server:
        add_node(server.url, server.key)
        job = ended(submit(user))
    assert job.state == "completed"
    assert balance(user) == (450, 0)


def test_a_clip_no_browser_plays_is_converted_before_it_is_charged(user, running):
    with FieldNode.start(fault="mpeg4") as field:
        add_node(field.url, field.key)
        job = ended(submit(user))
    facts = facts_of(Path(job.video.path))
    assert (job.state, facts.codec, facts.pix_fmt, facts.faststart) == ("completed", "h264", "yuv420p", True)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("error_status", None),
        ("truncated", "Video generated but download failed. No credits were deducted. Please try again."),
        ("download404", "Video generated but download failed. No credits were deducted. Please try again."),
        ("unplayable", "The video could not be played."),
        ("html200", "The GPU node could not be reached or stopped answering."),
    ],
)
def test_a_node_that_fails_costs_nothing_and_the_person_is_told(user, processes, fault, told):
    processes.environment |= {"JOB_MAX_ATTEMPTS": "1", "DOWNLOAD_TIMEOUT_SECONDS": "3"}
    processes.start("run_worker")
    processes.start("run_reconciler")
    with FieldNode.start(fault=fault) as field:
        add_node(field.url, field.key)
        job = ended(submit(user))
    assert job.state == "failed"
    assert job.error_message == told if told else job.error_message
    assert balance(user) == (500, 0)
    assert lifecycle.receipt(job)["released"] == 50


def test_a_field_node_that_does_not_answer_in_time_is_a_time_out_that_costs_nothing(user, processes):
    # The worker, which decides what such a node can finish in time, is told more than the reconciler, which gives up.
    processes.start("run_worker")
    processes.start("run_reconciler", FIELD_NODE_TIMEOUT_SECONDS="2")
    with FieldNode.start(fault="hang") as field:
        add_node(field.url, field.key)
        job = ended(submit(user))
    assert job.error_message == "Video generation timed out (>2s)"
    assert balance(user) == (500, 0)


def test_a_job_moves_to_another_node_when_the_first_breaks_off(user, running):
    with FieldNode.start(fault="drop_connection") as broken, FieldNode.start() as good:
        add_node(broken.url, broken.key, name="a-broken")
        job = submit(user)
        wait_for(lambda: JobAttempt.objects.filter(job=job, state="lost").exists())
        add_node(good.url, good.key, name="b-good")
        ended(job)
    assert job.state == "completed"
    assert balance(user) == (450, 0)


@pytest.mark.parametrize("victim", ["run_worker", "run_reconciler"])
def test_killing_a_process_in_the_middle_of_a_job_ends_with_one_charged_clip(user, running, victim):
    with VideosServer.start(seconds=3) as server:
        add_node(server.url, server.key)
        job = submit(user)
        wait_for(lambda: JobAttempt.objects.filter(job=job).exclude(remote_id="").exists())
        running.kill(victim)
        running.start(victim)
        ended(job)
    assert job.state == "completed"
    assert balance(user) == (450, 0)
    assert job.attempts.count() == 1


def test_both_processes_stop_when_asked_and_a_job_goes_on_when_they_are_back(user, running):
    with VideosServer.start(seconds=3) as server:
        add_node(server.url, server.key)
        job = submit(user)
        wait_for(lambda: JobAttempt.objects.filter(job=job).exclude(remote_id="").exists())
        assert running.stop("run_worker") == 0
        assert running.stop("run_reconciler") == 0
        running.start("run_worker")
        running.start("run_reconciler")
        ended(job)
    assert job.state == "completed"
    assert job.attempts.count() == 1


def test_a_job_that_no_node_takes_ends_by_its_deadline_and_costs_nothing(user, running, settings):
    settings.JOB_DEADLINE_SECONDS = 1
    job = ended(submit(user))
    assert (job.state, job.error_code) == ("failed", "timed_out")
    assert balance(user) == (500, 0)


def test_a_node_that_fails_repeatedly_is_set_aside_and_a_trial_clip_brings_it_back(user, processes, settings):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    processes.environment |= {"NODE_FAILURES_TO_SET_ASIDE": "2", "NODE_TRIAL_SECONDS": "1"}
    processes.start("run_worker")
    processes.start("run_reconciler")
    with FieldNode.start(fault="error_status") as field:
        node = add_node(field.url, field.key)
        assert [ended(submit(user)).state for _ in range(2)] == ["failed", "failed"]
        waiting = submit(user)
        node.refresh_from_db()
        assert node.set_aside_at is not None
        assert node.set_aside_reason.startswith("2 failures in a row, the last: ")
        wait_for(
            lambda: GpuNode.objects.filter(set_aside_reason__startswith="The canary clip failed").exists()
        )
        waiting.refresh_from_db()
        assert waiting.state == "queued"
        field.set_fault("none")
        assert ended(waiting).state == "completed"
    node.refresh_from_db()
    assert (node.set_aside_at, node.consecutive_failures) == (None, 0)
    assert balance(user) == (450, 0)


def test_a_node_that_is_silent_for_a_while_keeps_its_job_and_finishes_it(user, processes):
    processes.environment |= {"NODE_ANSWER_SECONDS": "2"}
    processes.start("run_worker")
    processes.start("run_reconciler")
    with VideosServer.start(seconds=1) as server:
        add_node(server.url, server.key)
        job = submit(user)
        wait_for(lambda: JobAttempt.objects.filter(job=job).exclude(remote_id="").exists())
        os.kill(server.pid, signal.SIGSTOP)
        wait_for(lambda: JobAttempt.objects.filter(job=job, silent_since__isnull=False).exists())
        job.refresh_from_db()
        assert (job.state, balance(user)) == ("running", (500, 50))
        os.kill(server.pid, signal.SIGCONT)
        ended(job)
    assert (job.state, job.attempts.count(), balance(user)) == ("completed", 1, (450, 0))
    assert job.attempts.get().silent_since is None
    log = processes.log("run_reconciler")
    assert log.count("no answer from node") == 1, "a silence is told once, not with every question"
    assert log.count("node answers again") == 1


def test_a_node_that_stays_silent_loses_its_job_to_another_and_its_late_result_is_not_charged(
    user, processes
):
    processes.environment |= {"NODE_MOVE_SECONDS": "2", "NODE_ANSWER_SECONDS": "2"}
    processes.start("run_worker")
    processes.start("run_reconciler")
    with VideosServer.start(seconds=300, deletes=True) as silent, VideosServer.start(seconds=1) as other:
        add_node(silent.url, silent.key, name="silent")
        job = submit(user)
        wait_for(lambda: JobAttempt.objects.filter(job=job).exclude(remote_id="").exists())
        os.kill(silent.pid, signal.SIGSTOP)
        add_node(other.url, other.key, name="other")
        wait_for(lambda: GpuNode.objects.get(name="silent").status == "unreachable")
        ended(job)
        os.kill(silent.pid, signal.SIGCONT)
        # When it is back, it is told that nobody wants this clip any more.
        wait_for(lambda: [asked for asked in silent.requests() if asked["method"] == "DELETE"])
    assert job.state == "completed"
    attempts = list(job.attempts.values_list("node__name", "state", "error"))
    assert [attempt[:2] for attempt in attempts] == [("silent", "lost"), ("other", "succeeded")]
    assert "another node is idle" in attempts[0][2]
    assert balance(user) == (450, 0)
