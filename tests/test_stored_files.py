"""Stored files that no job names are removed, whenever the process that wrote them died; scratch folders too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models.functions import Now
from django.urls import reverse

from generation import privacy
from generation.jobs import lifecycle, stored_files, submission, tasks
from generation.media.folders import work_folder
from generation.models import GenerationJob, GpuNode, UnclaimedFile
from tests.clips import FACTS
from tests.processes import Processes, wait_for
from tests.videos_server import VideosServer

pytestmark = pytest.mark.django_db

CLIP = ("videos/ab/clip.mp4", "posters/ab/clip.jpg")


def submit(user: Any) -> GenerationJob:
    return submission.submit(user=user, prompt="a red ball", source="api")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(*names: str) -> None:
    for name in names:
        default_storage.save(name, ContentFile(b"bytes"))


def wait_an_hour() -> None:
    UnclaimedFile.objects.update(remove_after=Now())


# --- Files ---


def test_files_that_nobody_claims_are_removed_when_no_task_can_be_at_them_any_more(settings):
    stored_files.announce(CLIP)
    write(*CLIP)
    tasks.remove_files()
    assert len(files(settings.MEDIA_ROOT)) == 2
    wait_an_hour()
    assert stored_files.due()
    tasks.remove_files()
    assert not files(settings.MEDIA_ROOT)
    assert not UnclaimedFile.objects.exists()


def test_the_files_of_a_completed_job_are_its_own_until_its_owner_deletes_it(user, finish_job, settings):
    job = finish_job(submit(user))
    wait_an_hour()
    tasks.remove_files()
    assert files(settings.MEDIA_ROOT) == {job.video.name, job.poster.name}
    lifecycle.delete(job=job)
    tasks.remove_files()
    assert not files(settings.MEDIA_ROOT)


def test_a_deletion_that_is_rolled_back_removes_nothing(user, finish_job, settings):
    job = finish_job(submit(user))
    with pytest.raises(RuntimeError), transaction.atomic():
        lifecycle.delete(job=job)
        raise RuntimeError
    tasks.remove_files()
    assert len(files(settings.MEDIA_ROOT)) == 2


def test_files_that_were_removed_meanwhile_cannot_be_charged_for(user, start_job):
    attempt = start_job(submit(user))
    lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    stored_files.announce(CLIP)
    wait_an_hour()
    tasks.remove_files()
    assert not lifecycle.complete(attempt_id=attempt.pk, files=CLIP, facts=FACTS)
    assert lifecycle.receipt(attempt.job)["captured"] == 0
    stored_files.announce(CLIP)
    assert lifecycle.complete(attempt_id=attempt.pk, files=CLIP, facts=FACTS)


def test_a_file_that_the_storage_does_not_give_up_keeps_no_other_and_is_tried_again(settings, caplog):
    stored_files.announce(CLIP)
    write(*CLIP)
    folder = (settings.MEDIA_ROOT / CLIP[0]).parent
    (settings.MEDIA_ROOT / CLIP[0]).unlink()
    (settings.MEDIA_ROOT / CLIP[0] / "not a file").mkdir(parents=True)
    wait_an_hour()
    assert stored_files.remove_due() == 1
    assert f"{CLIP[0]} could not be removed" in caplog.text
    assert list(UnclaimedFile.objects.values_list("name", flat=True)) == [CLIP[0]]
    (folder / "clip.mp4" / "not a file").rmdir()
    wait_an_hour()
    assert stored_files.remove_due() == 1
    assert not UnclaimedFile.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_is_killed_between_storing_and_charging_leaves_nothing_behind(
    user: Any, processes: Processes, settings: Any, database_url: str
) -> None:
    processes.start("run_reconciler")
    worker = processes.start("run_worker")
    with VideosServer.start(seconds=0.2) as server, psycopg.connect(database_url) as blocker:
        GpuNode.objects.create(name="node", base_url=server.url, api_key=server.key)
        job = submit(user)
        wait_for(lambda: GenerationJob.objects.get().state == "storing")
        # Whoever charges has to write this row: the files are stored, and then the worker waits for us.
        blocker.execute("SELECT 1 FROM generation_generationjob FOR UPDATE")
        wait_for(lambda: len(files(settings.MEDIA_ROOT)) == 2 and UnclaimedFile.objects.count() == 2)
        os.killpg(worker.pid, signal.SIGKILL)
        assert worker.wait(10) == -signal.SIGKILL
        blocker.rollback()
        processes.start("run_worker")
        wait_for(lambda: GenerationJob.objects.get().state == "completed")
    assert len(files(settings.MEDIA_ROOT)) == 4
    wait_an_hour()
    tasks.remove_files()
    job.refresh_from_db()
    assert files(settings.MEDIA_ROOT) == {job.video.name, job.poster.name}
    assert lifecycle.receipt(job) == {"reserved": 50, "captured": 50, "released": 0, "refunded": 0}


# --- What nodes keep ---


@pytest.fixture(scope="module")
def deleting() -> Iterator[VideosServer]:
    with VideosServer.start(deletes=True) as server:
        yield server


@pytest.fixture
def kept(user: Any, node: GpuNode, finish_job: Any) -> Callable[[VideosServer], GenerationJob]:
    """Complete a job whose clip is on that server, too."""

    def keep(server: VideosServer) -> GenerationJob:
        job = finish_job(submit(user))
        body = httpx.post(f"{server.url}/v1/videos", files={"prompt": (None, "a red ball")}).json()
        job.attempts.update(remote_id=body["id"])
        GpuNode.objects.filter(pk=node.pk).update(base_url=server.url)
        return job

    return keep


def is_on(server: VideosServer, job: GenerationJob) -> bool:
    return httpx.get(f"{server.url}/v1/videos/{job.attempts.get().remote_id}").status_code == 200


def test_a_video_that_its_owner_deletes_goes_from_its_node_too(browser, kept, deleting, settings):
    job = kept(deleting)
    tasks.remove_files()
    assert is_on(deleting, job), "it may be needed until its owner deletes it"
    assert browser.post(reverse("video_delete", args=[job.pk])).status_code == 302
    tasks.remove_files()
    assert not is_on(deleting, job)
    assert not UnclaimedFile.objects.exists()


def test_closing_the_account_takes_its_videos_from_the_nodes(user, kept, deleting):
    job = kept(deleting)
    privacy.forget(user=user)
    tasks.remove_files()
    assert not is_on(deleting, job)


def test_a_node_that_is_away_is_asked_again_and_keeps_no_file_here(kept, node, deleting, settings, caplog):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    jobs = [kept(deleting), kept(deleting)]
    GpuNode.objects.update(base_url="http://127.0.0.1:9")
    for job in jobs:
        lifecycle.delete(job=job)
    tasks.remove_files()
    assert not files(settings.MEDIA_ROOT)
    assert caplog.text.count("No connection to the node") == 1, "the node is asked once in a round"
    assert all(is_on(deleting, job) for job in jobs)
    GpuNode.objects.update(base_url=deleting.url)
    wait_an_hour()
    tasks.remove_files()
    assert not any(is_on(deleting, job) for job in jobs)
    assert not UnclaimedFile.objects.exists()


def test_a_node_that_stays_away_is_asked_for_a_week(kept, deleting, caplog):
    job = kept(deleting)
    GpuNode.objects.update(base_url="http://127.0.0.1:9")
    lifecycle.delete(job=job)
    tasks.remove_files()
    GenerationJob.objects.update(deleted_at=Now() - timedelta(days=8))
    wait_an_hour()
    tasks.remove_files()
    assert not UnclaimedFile.objects.exists()
    assert f"job {job.pk.hex}: node-1 keeps what it has of it" in caplog.text


def test_a_node_that_deletes_nothing_is_asked_once(kept):
    with VideosServer.start() as server:
        job = kept(server)
        lifecycle.delete(job=job)
        tasks.remove_files()
        assert is_on(server, job)
    assert not UnclaimedFile.objects.exists()


def test_what_a_canceled_attempt_still_runs_is_deleted_when_it_has_ended(user, start_job, node, deleting):
    attempt = start_job(submit(user))
    lifecycle.cancel(job=attempt.job)
    lifecycle.delete(job=attempt.job)
    tasks.remove_files()
    assert UnclaimedFile.objects.count() == 1
    lifecycle.attempt_stopped(attempt_id=attempt.pk, token=attempt.pk, stopped_at_step=3)
    wait_an_hour()
    tasks.remove_files()
    assert not UnclaimedFile.objects.exists()


# --- Scratch folders ---


def test_a_scratch_folder_is_private_and_gone_after_its_use(settings, tmp_path):
    settings.WORK_DIR = tmp_path / "work"
    with work_folder() as folder:
        (folder / "raw.mp4").write_bytes(b"bytes")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(settings.WORK_DIR.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(settings, tmp_path):
    settings.WORK_DIR = tmp_path / "work"
    program = (
        "import django, time; django.setup()\n"
        "from generation.media.folders import work_folder\n"
        "with work_folder() as folder: print(folder, flush=True); time.sleep(60)"
    )
    environment = os.environ | {
        "WORK_DIR": str(settings.WORK_DIR),
        "DJANGO_SETTINGS_MODULE": "videoplatform.settings",
    }
    owners = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        alive, dead = (Path(owner.stdout.readline().strip()) for owner in owners)
        owners[1].kill()
        owners[1].wait()
        with work_folder():
            assert dead.exists(), "it might be just being made"
        for folder in (alive, dead):
            os.utime(folder, (time.time() - 120,) * 2)
        with work_folder():
            assert alive.exists()
            assert not dead.exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def test_what_somebody_else_put_among_the_scratch_folders_stops_nothing(settings, tmp_path):
    settings.WORK_DIR = tmp_path / "work"
    settings.WORK_DIR.mkdir()
    stray = settings.WORK_DIR / ".DS_Store"
    stray.write_bytes(b"a file browser was here")
    os.utime(stray, (time.time() - 120,) * 2)
    with work_folder() as folder:
        assert folder.is_dir()
    assert stray.exists()
