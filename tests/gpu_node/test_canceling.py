"""Canceling: within a step, with the step told, and without a trace in the next clip."""

from tests.gpu_node.client import LONG_STEPS, Client


def test_a_running_job_stops_at_the_step_it_says(client: Client) -> None:
    job = client.create_long()
    seen = client.wait_for_step(job["id"], 3)

    canceled = client.cancel(job["id"])

    assert canceled["status"] == "failed"
    assert canceled["error"] == {"code": "canceled", "message": "The video was canceled."}
    assert seen["step"] <= canceled["stopped_at_step"] < LONG_STEPS
    assert canceled["stopped_at_step"] == canceled["step"]
    assert client.retrieve(job["id"]) == canceled
    assert not list(client.node.save_dir.glob(f"{job['id'].removeprefix('video_')}.mp4*"))


def test_the_next_clip_is_bit_equal_to_one_that_nothing_went_before(client: Client) -> None:
    undisturbed = client.make(seed=11, num_inference_steps=5)
    job = client.create_long(seed=12)
    client.wait_for_step(job["id"], 3)
    client.cancel(job["id"])

    assert client.make(seed=11, num_inference_steps=5) == undisturbed


def test_a_waiting_job_never_starts(client: Client) -> None:
    running = client.create_long()
    waiting = client.create(seed=2)

    canceled = client.cancel(waiting["id"])

    assert (canceled["status"], canceled["error"]["code"], canceled["stopped_at_step"]) == (
        "failed",
        "canceled",
        0,
    )
    assert client.retrieve(running["id"])["status"] == "in_progress"
    assert client.node.health()["queue_depth"] == 0


def test_canceling_twice_is_canceling_once(client: Client) -> None:
    job = client.create_long()
    client.wait_for_step(job["id"])

    assert client.cancel(job["id"]) == client.cancel(job["id"])


def test_a_finished_job_stays_finished(client: Client) -> None:
    job = client.finish(client.create()["id"])

    assert client.cancel(job["id"]) == job
    assert client.content(job["id"])
