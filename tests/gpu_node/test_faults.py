"""Faults of the GPU, its memory and the disk in the middle of a clip, and how busy the GPU is kept."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests import preforked
from tests.gpu_node.client import LONG_STEPS, Client
from tests.node_process import NodeProcess, wait_until

TWO_PIECES = {"num_frames": 17}  # of frames: there is a second one to fail at


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sabotage")


@pytest.fixture(scope="module")
def module_node(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    env = {"SABOTAGE_DIR": str(folder), "GPU_NODE_MAX_STEPS": str(LONG_STEPS)}
    env |= preforked.worker_settings("tests.gpu_node.sabotage")
    with NodeProcess.start(tmp_path_factory.mktemp("node"), env=env) as node:
        yield node


@pytest.fixture
def client(module_node: NodeProcess, folder: Path) -> Iterator[Client]:
    module_node.wait_for("ready")
    yield Client(module_node)
    for fault in folder.iterdir():
        fault.unlink()


@pytest.fixture(scope="module")
def undisturbed(module_node: NodeProcess) -> bytes:
    """The clip of seed 21 that nothing went wrong before."""
    return Client(module_node).make(seed=21, **TWO_PIECES)


def test_memory_that_runs_out_at_the_decoding_costs_tiles_and_no_clip(
    client: Client, folder: Path, undisturbed: bytes
) -> None:
    (folder / "out_of_memory_while_decoding").touch()

    job = client.finish(client.create(seed=21, **TWO_PIECES)["id"])

    assert job["status"] == "completed", job
    assert job["made_with"]["tiled"] is True
    known = (folder / "error_still_known").read_text()
    assert known == "None", "an error that is being handled keeps alive what filled the memory"
    after = client.finish(client.create(seed=21, **TWO_PIECES)["id"])
    assert after["made_with"]["tiled"] is False
    assert client.content(after["id"]) == undisturbed
    assert not list(client.node.save_dir.glob("*.part"))


def test_memory_that_runs_out_earlier_fails_the_job_and_nothing_else(
    client: Client, folder: Path, undisturbed: bytes
) -> None:
    worker = client.node.worker_pid()
    (folder / "out_of_memory_while_denoising").touch()

    job = client.finish(client.create(num_inference_steps=4)["id"])

    assert job["error"] == {
        "code": "out_of_memory",
        "message": "The GPU has too little memory for 9 frames of 64x32.",
    }
    assert client.make(seed=21, **TWO_PIECES) == undisturbed
    assert client.node.worker_pid() == worker


def test_values_that_are_no_picture_fail_the_job_before_it_is_decoded(client: Client, folder: Path) -> None:
    (folder / "decoded").unlink(missing_ok=True)
    (folder / "not_a_number").touch()

    job = client.finish(client.create()["id"])

    assert job["error"]["code"] == "unusable_result"
    assert not (folder / "decoded").exists()
    assert client.make()


def test_a_cuda_error_costs_its_job_and_a_new_process_goes_on_with_the_queue(
    client: Client, folder: Path, undisturbed: bytes
) -> None:
    """The clip that was only being written to its file is not lost either."""
    worker, restarts = client.node.worker_pid(), client.node.health()["worker_restarts"]
    (folder / "hold_the_file").touch()
    written = client.create(seed=21, **TWO_PIECES)
    wait_until(
        lambda: client.node.health()["running"] and (folder / "decoded").exists(), what="the first clip"
    )
    (folder / "cuda_error").touch()
    broken, waiting = client.create(seed=2, num_inference_steps=4), client.create(seed=21, **TWO_PIECES)
    failed = client.finish(broken["id"])
    (folder / "hold_the_file").unlink()

    assert failed["error"]["code"] == "gpu_error"
    assert "illegal memory access" in failed["error"]["message"]
    assert [client.finish(job["id"])["status"] for job in (written, waiting)] == ["completed", "completed"]
    assert client.content(written["id"]) == client.content(waiting["id"]) == undisturbed
    assert client.node.worker_pid() != worker
    assert client.node.health()["worker_restarts"] == restarts + 1


def test_a_disk_that_fills_up_fails_the_clip_that_did_not_fit(client: Client, folder: Path) -> None:
    (folder / "disk_full").touch()

    job = client.finish(client.create()["id"])

    assert job["error"] == {"code": "disk_full", "message": "The node's disk is full."}
    assert client.make()


def test_the_next_clip_runs_while_the_last_ones_file_is_written(client: Client, folder: Path) -> None:
    (folder / "hold_the_file").touch()
    first, second = client.create(seed=1), client.create_long(seed=2)

    client.wait_for_step(second["id"])

    assert client.retrieve(first["id"])["status"] == "in_progress"
    (folder / "hold_the_file").unlink()
    assert client.finish(first["id"])["status"] == "completed"
    client.cancel(second["id"])


def test_the_gpu_hardly_idles_between_two_clips_when_the_second_waits(client: Client) -> None:
    running = client.create_long()
    client.wait_for_step(running["id"])
    waiting = [client.create(seed=number) for number in (5, 6)]
    client.cancel(running["id"])
    for job in waiting:
        client.finish(job["id"])

    assert 0 <= client.node.health()["idle_seconds"] < 5, "some milliseconds on a machine that is not busy"


def test_a_clip_whose_file_is_being_written_can_be_canceled(client: Client, folder: Path) -> None:
    (folder / "hold_the_file").touch()
    job, running = client.create(seed=1), client.create_long(seed=2)
    client.wait_for_step(running["id"])
    ask = client.post(f"/v1/videos/{running['id']}/cancel").json()
    (folder / "hold_the_file").unlink()

    assert ask["error"]["code"] == "canceled"
    assert client.cancel(job["id"])["status"] in ("completed", "failed")


def test_a_kill_costs_what_ran_and_what_was_only_being_written_is_made_again(
    client: Client, folder: Path, undisturbed: bytes
) -> None:
    """The job that runs was posted by a client of the field protocol, which still waits for its answer."""
    (folder / "hold_the_file").touch()
    written = client.create(seed=21, **TWO_PIECES)
    answers: list[requests.Response] = []
    body = {"prompt": "something long", "steps": LONG_STEPS}
    field = Client(client.node)
    asking = threading.Thread(target=lambda: answers.append(field.post("/generate_video", json=body)))
    asking.start()
    running = wait_until(lambda: running_job(client, but=written["id"]), what="the job of the field client")
    waiting = client.create(seed=21, **TWO_PIECES)
    worker = client.node.worker_pid()
    assert worker is not None

    os.kill(worker, signal.SIGKILL)
    failed = client.finish(running)
    starting = client.node.wait_for("starting")
    asking.join(60)
    (folder / "hold_the_file").unlink()

    message = "The GPU worker process died (killed by SIGKILL)."
    assert failed["error"] == {"code": "worker_died", "message": message}
    assert (answers[0].status_code, answers[0].json()) == (200, {"status": "error", "error": message})
    assert starting["queue_depth"] == 2
    assert [client.finish(job["id"])["status"] for job in (written, waiting)] == ["completed", "completed"]
    assert client.content(written["id"]) == client.content(waiting["id"]) == undisturbed
    assert client.node.worker_pid() != worker
    assert not list(client.node.save_dir.glob("*.part"))


def running_job(client: Client, *, but: str) -> str | None:
    """The id of the other job that the GPU has done steps of."""
    jobs = client.get("/v1/videos").json()["data"]
    return next(
        (job["id"] for job in jobs if job["status"] == "in_progress" and job["step"] and job["id"] != but),
        None,
    )


def test_a_cancel_that_comes_in_a_step_stops_the_job_at_the_end_of_the_next(
    client: Client, folder: Path
) -> None:
    (folder / "cancel_in_this_step").touch()
    job = client.create_long()
    client.wait_for_step(job["id"], 3)

    assert client.cancel(job["id"])["stopped_at_step"] == 4


def test_a_waiting_job_that_is_canceled_never_runs_though_the_worker_had_it(client: Client) -> None:
    running = client.create_long()
    client.wait_for_step(running["id"])
    ahead, last = client.create(seed=5), client.create(seed=6)

    canceled = client.cancel(ahead["id"])
    client.cancel(running["id"])

    assert canceled["stopped_at_step"] == 0
    assert client.finish(last["id"])["status"] == "completed"
    assert client.retrieve(ahead["id"]) == canceled
    assert not (client.node.save_dir / f"{ahead['id'].removeprefix('video_')}.mp4").exists()
