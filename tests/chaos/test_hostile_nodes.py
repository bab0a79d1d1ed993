"""R4: a node that misbehaves in every way we could think of is charged for if and only if a playable file is stored."""

from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode, JobAttempt
from tests.clips import facts_of
from tests.field_node import FieldNode
from tests.processes import Processes, wait_for
from tests.videos_server import VideosServer

pytestmark = pytest.mark.django_db(transaction=True)

# What each fault of a field node must lead to. Where the clip can be mended it is, and is paid for.
FAULTS = {
    "none": "completed",
    "mpeg4": "completed",
    "yuv444": "completed",
    "http500": "failed",
    "http400": "failed",
    "hang": "failed",
    "drop_connection": "failed",
    "html200": "failed",
    "empty200": "failed",
    "list200": "failed",
    "huge_json": "failed",
    "deep_json": "failed",
    "redirect": "failed",
    "wrong_type": "failed",
    "error_status": "failed",
    "traversal": "failed",
    "traversal_encoded": "failed",
    "not_video": "failed",
    "unplayable": "failed",
    "download401": "failed",
    "download404": "failed",
    "truncated": "failed",
    "endless": "failed",
}
SHORT = ("none", "html200", "download404")


def ended(job: GenerationJob) -> GenerationJob:
    def look() -> bool:
        job.refresh_from_db()
        return not job.is_live

    wait_for(look, message=f"{job.id.hex} is stuck as {job.state}")
    return job


def check_paid_iff_playable(job: GenerationJob) -> None:
    receipt = lifecycle.receipt(job)
    if job.state == "completed":
        assert receipt["captured"] == 50
        assert facts_of(Path(job.video.path)).codec == "h264"
    else:
        assert (receipt["captured"], receipt["released"]) == (0, 50)
        assert not job.video
        assert job.error_message, "nobody was told why"


@pytest.fixture
def running(processes: Processes) -> Processes:
    processes.environment |= {
        "JOB_MAX_ATTEMPTS": "1",
        "DOWNLOAD_TIMEOUT_SECONDS": "6",
        "MAX_VIDEO_BYTES": "2000000",
        "NODE_FAILURES_TO_SET_ASIDE": "1000",
        "NODE_HEALTH_SECONDS": "0.2",
    }
    processes.start("run_worker")
    processes.start("run_reconciler", FIELD_NODE_TIMEOUT_SECONDS="3")
    return processes


def test_a_hostile_field_node_is_paid_only_for_what_plays(
    user: Any, running: Processes, settings: Any, amount: Any, score: Any
) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    faults = list(FAULTS) if amount(1, 0) else list(SHORT)
    row = score(
        "R4",
        test="a hostile /generate_video node",
        load="one job for each fault",
        faults=", ".join(fault for fault in faults if fault != "none"),
        bar="charged if and only if a playable file is stored",
    )
    with FieldNode.start() as field:
        GpuNode.objects.create(name="hostile", base_url=field.url, api_key=field.key)
        for fault in faults:
            field.set_fault(fault)
            # Whatever the fault before it led to, this one meets a node that is in use.
            GpuNode.objects.update(leave_alone_until=None, set_aside_at=None, next_canary_at=None)
            job = ended(submission.submit(user=user, prompt=f"under {fault}", source="api"))
            assert job.state == FAULTS[fault], (fault, job.state, job.error_message)
            check_paid_iff_playable(job)
    call_command("audit_credits")
    row.result = f"{len(faults)} jobs, each as it should be"
    row.passed = True


def test_a_node_that_takes_a_job_and_forgets_it_or_answers_late_is_never_paid_twice(
    user: Any, running: Processes, settings: Any, score: Any
) -> None:
    row = score(
        "R4",
        test="a /v1/videos node: crash after accept, result after release",
        load="2 jobs",
        faults="SIGKILL of the node with the job on it; a cancel while it works",
        bar="charged if and only if a playable file is stored",
    )
    settings.VIDEO_COOLDOWN_SECONDS = 0
    with VideosServer.start(seconds=30) as server:
        node = GpuNode.objects.create(name="node", base_url=server.url, api_key=server.key)
        crashed = submission.submit(user=user, prompt="crash after accept", source="api")
        wait_for(lambda: JobAttempt.objects.filter(job=crashed).exclude(remote_id="").exists())
        server.kill()
    with VideosServer.start(seconds=2, port=server.port) as reborn:
        assert (
            reborn.url == node.base_url
        )  # the same node as far as anybody can see, but it has forgotten the job
        ended(crashed)
        assert crashed.state == "failed"
        check_paid_iff_playable(crashed)
        GpuNode.objects.update(leave_alone_until=None)
        late = submission.submit(user=user, prompt="released before the result", source="api")
        wait_for(lambda: JobAttempt.objects.filter(job=late).exclude(remote_id="").exists())
        lifecycle.cancel(job=late)
        wait_for(lambda: JobAttempt.objects.filter(job=late).exclude(state="open").exists())
        late.refresh_from_db()
        assert late.state == "canceled"
        check_paid_iff_playable(late)
    call_command("audit_credits")
    row.result = "lost: released; late result: discarded"
    row.passed = True
