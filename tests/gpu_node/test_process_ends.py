"""Jobs when a process dies, stops or starts again. Each test has a node of its own."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.gpu_node.client import LONG_STEPS, Client
from tests.node_process import NodeProcess, wait_until

LONG_ALLOWED = {"GPU_NODE_MAX_STEPS": str(LONG_STEPS)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def node_env(models: Path) -> dict[str, str]:
    return LONG_ALLOWED | {"GPU_NODE_CACHE_DIR": str(models)}


@pytest.fixture
def own_node(tmp_path: Path, node_env: dict[str, str]) -> Iterator[NodeProcess]:
    with NodeProcess.start(tmp_path, env=node_env) as node:
        yield node


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_hangs_is_killed_when_its_job_is_canceled_or_makes_no_progress(
    tmp_path: Path, node_env: dict[str, str]
) -> None:
    env = node_env | {"GPU_NODE_CANCEL_SECONDS": "1", "GPU_NODE_STALL_SECONDS": "3"}
    with NodeProcess.start(tmp_path, env=env) as node:
        client = Client(node)
        canceled = client.cancel(hanging_job(client)["id"])
        node.wait_for("ready")
        stalled = client.finish(hanging_job(client)["id"])

        assert canceled["error"]["code"] == "canceled"
        assert 2 <= canceled["stopped_at_step"] < LONG_STEPS
        assert stalled["error"] == {
            "code": "worker_died",
            "message": "The job made no progress for 3 seconds.",
        }


def hanging_job(client: Client) -> dict[str, Any]:
    """A job whose worker stands still in the middle of it."""
    job = client.create_long()
    client.wait_for_step(job["id"])
    os.kill(client.node.worker_pid() or 0, signal.SIGSTOP)
    return job


def test_after_a_kill_finished_jobs_are_known_and_unfinished_ones_are_not(
    tmp_path: Path, node_env: dict[str, str]
) -> None:
    with NodeProcess.start(tmp_path, env=node_env) as node:
        client = Client(node)
        done = client.finish(client.create(key="done")["id"])
        clip = client.content(done["id"])
        failed = client.create(key="failed", seed=2)
        client.cancel(failed["id"])
        failed = client.retrieve(failed["id"])
        running, waiting = client.create_long(key="running"), client.create(key="waiting", seed=3)
        client.wait_for_step(running["id"])
        worker = node.worker_pid()
        assert worker is not None
        node.kill()
    wait_until(lambda: is_gone(worker), seconds=15, what="the worker to end")

    with NodeProcess.start(tmp_path, port=node.port, env=node_env, until="starting", forked=False):
        early = client.post("/v1/videos", json={"prompt": "early", "num_inference_steps": 2}).json()
        assert client.retrieve(done["id"]) == done
        assert client.content(done["id"]) == clip
        assert client.get(f"/get_video/{done['file_name']}").content == clip
        assert client.create(key="done")["id"] == done["id"]
        assert client.retrieve(failed["id"]) == failed
        assert client.get(f"/v1/videos/{running['id']}").status_code == 404
        assert client.get(f"/v1/videos/{waiting['id']}").status_code == 404
        assert client.create_long(key="running")["id"] != running["id"]

        assert (early["status"], early["size"]) == ("queued", None), "taken while the model loads"
        made = client.finish(early["id"])
        assert (made["status"], made["size"], made["num_frames"]) == ("completed", "96x64", 17)


class TestSigterm:
    def test_a_quick_job_is_finished_first(self, own_node: NodeProcess) -> None:
        client = Client(own_node)
        answers: list[dict[str, Any]] = []
        body = {"prompt": "x", "frames": 9, "steps": 20}
        waiting = threading.Thread(
            target=lambda: answers.append(client.post("/generate_video", json=body).json())
        )
        waiting.start()
        wait_until(lambda: own_node.health()["running"], what="the job to run")

        assert own_node.stop() == 0
        waiting.join(10)

        assert answers[0]["status"] == "ok"
        assert Path(answers[0]["video_path"]).is_file()

    def test_a_long_job_is_given_back_and_nothing_stays_behind(self, own_node: NodeProcess) -> None:
        client = Client(own_node)
        fields = {"size": "160x96", "num_frames": 49}
        running, waiting = client.create_long(**fields), client.create(seed=2)
        client.wait_for_step(running["id"])
        worker = own_node.worker_pid()
        assert worker is not None
        followers = [Follower(client, job["id"]) for job in (running, waiting)]
        poster = Poster(client)
        os.kill(own_node.pid, signal.SIGTERM)
        health = own_node.wait_for("draining")
        refused = client.post("/v1/videos", json={"prompt": "too late"})

        assert own_node.wait() == 0

        assert health["running"] == 1
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "unavailable"
        assert [follower.last_status() for follower in followers] == [404, 404]
        assert poster.answer().status_code == 503
        assert poster.answer().json()["status"] == "error"
        assert is_gone(worker)
        assert not list(own_node.save_dir.iterdir())

    def test_a_node_that_still_loads_its_model_stops_too(
        self, tmp_path: Path, node_env: dict[str, str]
    ) -> None:
        node = NodeProcess.start(tmp_path, env=node_env, until="starting", forked=False)
        worker = wait_until(node.worker_pid, what="the worker")

        assert node.stop() == 0

        assert is_gone(worker)


class Follower(threading.Thread):
    """Follows a job by long polls, as the platform does, until it is told something final."""

    def __init__(self, client: Client, video_id: str) -> None:
        super().__init__()
        self._client = Client(client.node)
        self._path = f"/v1/videos/{video_id}"
        self._status = 0
        self.start()

    def run(self) -> None:
        live = True
        while live:
            response = self._client.get(self._path, headers={"Prefer": "wait=30"})
            self._status = response.status_code
            live = self._status == 200 and response.json()["status"] in ("queued", "in_progress")

    def last_status(self) -> int:
        self.join(30)
        return self._status


class Poster(threading.Thread):
    """A field client that waits for its clip; started, it has its place in the queue."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = Client(client.node)
        self._depth = client.node.health()["queue_depth"]
        self._answer: requests.Response | None = None
        self.start()
        wait_until(lambda: client.node.health()["queue_depth"] > self._depth, what="the post to arrive")

    def run(self) -> None:
        self._answer = self._client.post("/generate_video", json={"prompt": "x"})

    def answer(self) -> requests.Response:
        self.join(30)
        assert self._answer is not None
        return self._answer


def test_old_clips_are_removed(tmp_path: Path, node_env: dict[str, str]) -> None:
    hour = "0.0006"  # 2.2 seconds
    with NodeProcess.start(tmp_path, env=node_env | {"GPU_NODE_RETENTION_HOURS": hour}) as node:
        client = Client(node)
        job = client.finish(client.create()["id"])
        path = node.save_dir / job["file_name"]

        wait_until(lambda: not path.exists(), what="the clip to be removed")

        assert client.get(f"/v1/videos/{job['id']}").status_code == 404
        assert not list(node.save_dir.iterdir())


def test_a_full_disk_is_a_refusal(tmp_path: Path, node_env: dict[str, str]) -> None:
    more_than_any_disk = str(2**40)
    env = node_env | {"GPU_NODE_MIN_FREE_MB": more_than_any_disk}
    with NodeProcess.start(tmp_path, env=env, until="failed") as node:
        client = Client(node)
        openai_style = client.post("/v1/videos", json={"prompt": "x"})
        field_style = client.post("/generate_video", json={"prompt": "x"})

        assert openai_style.status_code == field_style.status_code == 507
        assert openai_style.json()["error"]["code"] == "disk_full"
        assert "disk is full" in field_style.json()["error"]
        assert "disk is full" in node.health()["reason"]
