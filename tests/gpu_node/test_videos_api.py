"""`/v1/videos`: create, follow, list, download, delete."""

import io
import json
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
from PIL import Image

from gpu_node.schemas import parse_video
from gpu_node.settings import NodeSettings
from tests.gpu_node.client import Client, frames_of
from tests.node_process import wait_until


def test_a_job_goes_from_queued_to_a_clip(client: Client) -> None:
    created = client.create(num_frames=16, fps=8, num_inference_steps=4)
    assert created["object"] == "video"
    assert created["status"] in ("queued", "in_progress")
    assert created["error"] is None

    job = client.finish(created["id"])

    assert job["status"] == "completed"
    assert (job["progress"], job["step"], job["steps"]) == (100, 4, 4)
    assert (job["num_frames"], job["generated_frames"], job["seconds"], job["size"]) == (16, 17, "2", "64x32")
    assert job["generation_time_ms"] > 0
    assert job["made_with"].items() >= {"model": "tiny-random", "profile": "exact", "tiled": False}.items()
    assert job["completed_at"] >= job["created_at"]
    assert frames_of(client.content(job["id"])).shape == (16, 32, 64, 3)


def test_size_and_frames_default_to_what_the_model_was_made_for(client: Client) -> None:
    response = client.post("/v1/videos", json={"prompt": "x", "num_inference_steps": 2})

    assert (response.json()["size"], response.json()["num_frames"]) == ("96x64", 17)
    assert frames_of(client.content(client.finish(response.json()["id"])["id"])).shape == (17, 64, 96, 3)


@pytest.mark.parametrize(("seconds", "frames"), [("2", 16), ("1", 8), (0.5, 4)])
def test_seconds_become_frames(client: Client, seconds: Any, frames: int) -> None:
    job = client.create(num_frames=None, seconds=seconds)

    assert job["num_frames"] == frames
    assert len(frames_of(client.content(client.finish(job["id"])["id"]))) == frames


@pytest.mark.parametrize(("model", "fps", "frames"), [("5B", 8, 16), ("1.5-5B", 16, 32)])
def test_a_clip_is_as_fast_as_the_model_was_trained_for(
    model: str, fps: int, frames: int, tmp_path: Path
) -> None:
    settings = NodeSettings.model_validate({"model": model, "save_dir": tmp_path})

    spec, _ = parse_video({"prompt": "x", "seconds": 2}, settings)

    assert (spec.fps, spec.num_frames) == (fps, frames)


def test_a_form_is_as_good_as_json(client: Client) -> None:
    fields = {"prompt": "a form", "num_frames": "9", "num_inference_steps": "2", "size": "64x32", "seed": "7"}

    job = client.post("/v1/videos", files={name: (None, value) for name, value in fields.items()}).json()

    assert (job["prompt"], job["num_frames"], job["steps"], job["seed"]) == ("a form", 9, 2, 7)
    assert client.finish(job["id"])["status"] == "completed"


@pytest.mark.parametrize("value", [None, ""])
def test_fields_that_are_null_or_empty_count_as_left_out(client: Client, value: str | None) -> None:
    names = [
        "model",
        "seconds",
        "fps",
        "guidance_scale",
        "seed",
        "negative_prompt",
        "input_reference",
        "user",
    ]

    job = client.create(**dict.fromkeys(names, value))

    assert client.finish(job["id"])["status"] == "completed"


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_official_sdk_is_a_client(client: Client) -> None:
    sdk = openai.OpenAI(base_url=f"{client.node.url}/v1", api_key=client.node.key)
    extra: dict[str, Any] = {"num_inference_steps": 2, "size": "64x32", "fps": 4}

    video = sdk.videos.create_and_poll(
        prompt="x", model="tiny-random", seconds="4", extra_body=extra, poll_interval_ms=100
    )

    assert video.status == "completed"
    assert len(frames_of(sdk.videos.download_content(video.id).read())) == 16
    assert sdk.videos.list(limit=1).data[0].id == video.id
    assert sdk.videos.delete(video.id).deleted


class TestDeterminism:
    def test_the_same_seed_is_the_same_file_bit_by_bit(self, client: Client) -> None:
        assert client.make(seed=5) == client.make(seed=5)

    def test_another_seed_is_another_clip(self, client: Client) -> None:
        first, second = frames_of(client.make(seed=5)), frames_of(client.make(seed=6))

        assert numpy.mean(first != second) > 0.5

    def test_another_prompt_is_another_clip(self, client: Client) -> None:
        first, second = frames_of(client.make("a red ball")), frames_of(client.make("a blue star"))

        assert (first != second).any()

    def test_another_negative_prompt_is_another_clip(self, client: Client) -> None:
        first, second = frames_of(client.make()), frames_of(client.make(negative_prompt="blurred and dull"))

        assert (first != second).any()

    def test_capitals_make_no_difference_to_the_embedded_models(self, client: Client) -> None:
        assert client.make("A Red BALL") == client.make("a red ball")

    def test_a_seed_that_was_not_asked_for_is_told_and_makes_the_same_clip_again(
        self, client: Client
    ) -> None:
        job = client.finish(client.create(seed=None)["id"])
        other = client.create(seed=None)

        assert client.content(job["id"]) == client.make(seed=job["seed"])
        assert other["seed"] != job["seed"]

    @pytest.mark.parametrize(("asked", "generated"), [(1, 1), (2, 9), (9, 9), (10, 17), (24, 25)])
    def test_any_number_of_frames_is_delivered_as_asked(
        self, client: Client, asked: int, generated: int
    ) -> None:
        job = client.finish(client.create(num_frames=asked)["id"])

        assert (job["num_frames"], job["generated_frames"]) == (asked, generated)
        assert len(frames_of(client.content(job["id"]))) == asked


class TestFollowing:
    def test_prefer_wait_answers_at_the_next_step(self, client: Client) -> None:
        job = client.create_long()
        seen = [client.retrieve(job["id"], wait=30) for _ in range(6)]

        assert [answer["step"] for answer in seen] == sorted(answer["step"] for answer in seen)
        assert len({(answer["status"], answer["step"]) for answer in seen}) > 3
        assert all(answer["steps"] == 1000 for answer in seen)

    def test_prefer_wait_ends_without_a_change_too(self, client: Client) -> None:
        client.create_long()
        waiting = client.create(seed=2)

        response = client.get(f"/v1/videos/{waiting['id']}", headers={"Prefer": "respond-async, wait=1"})

        assert response.json()["status"] == "queued"
        assert response.headers["Preference-Applied"] == "wait=1"

    def test_a_finished_job_is_answered_at_once(self, client: Client) -> None:
        job = client.finish(client.create()["id"])

        response = client.get(f"/v1/videos/{job['id']}", headers={"Prefer": "wait=60"})

        assert response.elapsed.total_seconds() < 20

    def test_the_line_is_first_come_first_served_and_positions_are_told(self, client: Client) -> None:
        long = client.create_long()
        client.wait_for_step(long["id"])
        second, third = client.create(seed=2), client.create(seed=3)
        assert (second["queue_position"], third["queue_position"]) == (1, 2)
        assert client.node.health()["queue_depth"] == 2

        client.cancel(long["id"])

        ends = [client.finish(job["id"]) for job in (second, third)]
        files = [client.node.save_dir / job["file_name"] for job in ends]
        assert files[0].stat().st_mtime_ns < files[1].stat().st_mtime_ns
        assert ends[0]["queue_position"] is None


class TestIdempotency:
    def test_the_same_key_is_the_same_clip(self, client: Client) -> None:
        first, again = client.create(key="attempt-1"), client.create(key="attempt-1")
        assert first["id"] == again["id"]
        client.finish(first["id"])
        before = len(list(client.node.save_dir.glob("*.mp4")))

        assert client.create(key="attempt-1")["status"] == "completed"

        assert len(list(client.node.save_dir.glob("*.mp4"))) == before

    def test_the_same_key_with_another_body_is_refused(self, client: Client) -> None:
        client.create(key="attempt-2")

        response = client.post(
            "/v1/videos", json={"prompt": "other"}, headers={"Idempotency-Key": "attempt-2"}
        )

        assert response.status_code == 422
        assert response.json()["error"]["code"] == "idempotency_key_reused"

    def test_the_same_request_as_form_and_as_json_is_the_same_request(self, client: Client) -> None:
        fields = {"prompt": "x", "num_frames": 9, "size": "64x32", "num_inference_steps": 2}
        headers = {"Idempotency-Key": "attempt-3"}

        one = client.post("/v1/videos", json=fields, headers=headers).json()
        form = {name: (None, str(value)) for name, value in fields.items()}
        other = client.post("/v1/videos", files=form, headers=headers).json()

        assert one["id"] == other["id"]

    def test_a_twin_is_found_even_when_the_queue_is_full(self, client: Client) -> None:
        jobs = [client.create_long(key=f"full-{number}") for number in range(3)]
        refused = client.post(
            "/v1/videos", json={"prompt": "one more"}, headers={"Idempotency-Key": "full-9"}
        )

        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        assert client.create_long(key="full-2")["id"] == jobs[2]["id"]

    def test_a_refusal_is_not_remembered(self, client: Client) -> None:
        headers = {"Idempotency-Key": "attempt-4"}
        assert client.post("/v1/videos", json={"prompt": ""}, headers=headers).status_code == 400

        assert client.create(key="attempt-4")["id"]

    @pytest.mark.parametrize("key", ["", "two words", "x" * 256])
    def test_a_key_that_cannot_be_one_is_refused(self, client: Client, key: str) -> None:
        response = client.post("/v1/videos", json={"prompt": "x"}, headers={"Idempotency-Key": key})

        assert response.status_code == 400
        assert response.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "\udfff"}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"negative_prompt": "\x00"}, "negative_prompt"),
        ({"size": "97x64"}, "size"),
        ({"size": "104x64"}, "size"),
        ({"size": "big"}, "size"),
        ({"size": "16x16"}, "size"),
        ({"size": "4096x4096"}, "size"),
        ({"size": "0x0"}, "size"),
        ({"num_frames": 0}, "num_frames"),
        ({"num_frames": 50}, "num_frames"),
        ({"num_frames": None, "seconds": "12"}, "num_frames"),
        ({"num_frames": None, "seconds": "soon"}, "seconds"),
        ({"num_frames": None, "seconds": -1}, "seconds"),
        ({"fps": 61}, "fps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"model": "sora-2"}, "model"),
    ],
)
def test_a_wrong_field_is_named(client: Client, fields: dict[str, Any], param: str) -> None:
    response = client.post("/v1/videos", json={"prompt": "x"} | fields)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert error["message"]


def test_numbers_that_json_does_not_know_are_refused(client: Client) -> None:
    body = json.dumps({"prompt": "x", "guidance_scale": float("nan")})

    assert client.post("/v1/videos", data=body).json()["error"]["param"] == "guidance_scale"


def test_a_picture_to_start_from_is_refused_rather_than_ignored(client: Client) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 32)).save(picture, "PNG")
    response = client.post(
        "/v1/videos", files={"prompt": (None, "x"), "input_reference": ("a.png", picture.getvalue())}
    )

    assert response.status_code == 400
    assert "text only" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "input_reference"


def test_a_body_larger_than_any_valid_one_is_refused(client: Client) -> None:
    response = client.post("/v1/videos", data=b'{"prompt": "' + b"x" * 2**20 + b'"}')

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/videos/video_nope", 404),
        ("GET", "/v1/videos/video_nope/content", 404),
        ("POST", "/v1/videos/video_nope/cancel", 404),
        ("DELETE", "/v1/videos/video_nope", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos?order=random", 400),
        ("GET", "/v1/videos?after=video_nope", 404),
    ],
)
def test_what_is_not_there_is_told_in_openais_shape(
    client: Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)

    assert response.status_code == status
    assert set(response.json()["error"]) == {"code", "message", "param", "type"}


def test_a_clip_that_is_not_ready_cannot_be_downloaded(client: Client) -> None:
    job = client.create_long()

    response = client.get(f"/v1/videos/{job['id']}/content")

    assert response.status_code == 409
    assert response.json()["error"]["message"] == "The video is not ready yet."


def test_content_is_served_in_ranges_and_by_head(client: Client) -> None:
    job = client.finish(client.create()["id"])
    clip = client.content(job["id"])

    part = client.get(f"/v1/videos/{job['id']}/content", headers={"Range": "bytes=2-5"})
    head = client.request("HEAD", f"/v1/videos/{job['id']}/content")

    assert (part.status_code, part.content) == (206, clip[2:6])
    assert head.headers["Content-Length"] == str(len(clip))
    assert client.get(f"/v1/videos/{job['id']}/content?variant=thumbnail").status_code == 400


def test_the_list_is_paged_newest_first(client: Client) -> None:
    ids = [client.finish(client.create(seed=number)["id"])["id"] for number in range(3)]

    first = client.get("/v1/videos", params={"limit": 2}).json()
    second = client.get("/v1/videos", params={"limit": 1, "after": first["last_id"]}).json()
    oldest_first = client.get("/v1/videos", params={"limit": 100, "order": "asc"}).json()

    assert [job["id"] for job in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"]
    assert second["data"][0]["id"] == ids[0]
    assert [job["id"] for job in oldest_first["data"]][-3:] == ids


def test_a_deleted_job_is_gone_with_its_file_and_its_key(client: Client) -> None:
    job = client.finish(client.create(key="deleted")["id"])
    path = client.node.save_dir / job["file_name"]
    assert path.is_file()

    answer = client.request("DELETE", f"/v1/videos/{job['id']}").json()

    assert answer == {"id": job["id"], "object": "video.deleted", "deleted": True}
    assert not path.exists()
    assert not path.with_suffix(".json").exists()
    assert client.get(f"/v1/videos/{job['id']}").status_code == 404
    assert client.create(key="deleted")["id"] != job["id"]


def test_deleting_a_running_job_stops_it(client: Client) -> None:
    job = client.create_long()
    client.wait_for_step(job["id"])

    assert client.request("DELETE", f"/v1/videos/{job['id']}").json()["deleted"]

    assert client.get(f"/v1/videos/{job['id']}").status_code == 404
    wait_until(lambda: client.node.health()["running"] == 0, what="the node to be idle")
