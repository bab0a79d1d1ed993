"""`POST /generate_video` and `GET /get_video/…`, as the clients that are out there use them."""

import io
import threading
from pathlib import Path
from typing import Any

import av
import pytest
import requests

from tests.gpu_node.client import Client, boxes_of, frames_of
from tests.node_process import NodeProcess


def generate_video(url: str, key: str, prompt: str, frames: int, steps: int) -> str | None:
    """The field client's own code."""
    response = requests.post(
        f"{url}/generate_video",
        headers={"x-api-key": key},
        json={"prompt": prompt, "frames": frames, "fps": 8, "steps": steps},
        timeout=90,
    )
    data = response.json()
    return data["video_path"] if data["status"] == "ok" else None


def download_video(url: str, key: str, video_path: str) -> bytes:
    """The field client's own code."""
    filename = Path(video_path).name
    response = requests.get(f"{url}/get_video/{filename}", headers={"x-api-key": key}, timeout=90)
    response.raise_for_status()
    return response.content


@pytest.fixture(scope="module")
def clip(session_node: NodeProcess) -> bytes:
    path = generate_video(session_node.url, session_node.key, "A red ball", 16, 20)
    assert path is not None
    return download_video(session_node.url, session_node.key, path)


def test_sixteen_frames_asked_are_sixteen_frames_delivered(clip: bytes) -> None:
    assert frames_of(clip).shape == (16, 64, 96, 3)


def test_the_clip_plays_in_browsers_and_telegram(clip: bytes) -> None:
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.profile == "High"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 8
        assert float(container.duration / av.time_base) == pytest.approx(2.0)
    boxes = boxes_of(clip)
    assert boxes.index("moov") < boxes.index("mdat"), "faststart: the index comes before the pictures"


def test_numbers_that_are_null_are_the_usual_ones(client: Client) -> None:
    usual = {"prompt": "x", "frames": None, "fps": None, "steps": None}
    assert client.post("/generate_video", json=usual).json()["status"] == "ok"


def test_the_answer_has_exactly_the_fields_of_the_protocol(client: Client) -> None:
    response = client.post("/generate_video", json={"prompt": "x", "frames": 9, "fps": 8, "steps": 2})

    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"status", "video_path", "generation_time_ms"}
    assert answer["status"] == "ok"
    assert answer["generation_time_ms"] > 0
    assert Path(answer["video_path"]).is_file()


def test_frames_fps_and_steps_may_be_left_out(client: Client) -> None:
    assert client.post("/generate_video", json={"prompt": "x"}).json()["status"] == "ok"

    job = client.get("/v1/videos", params={"limit": 1}).json()["data"][0]
    assert (job["num_frames"], job["fps"], job["steps"]) == (16, 8, 20)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "prompt"),
        ({"prompt": "   "}, "prompt"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x", "frames": 0}, "frames"),
        ({"prompt": "x", "frames": 50}, "at most 49 frames"),
        ({"prompt": "x", "frames": "many"}, "frames"),
        ({"prompt": "x", "fps": 0}, "fps"),
        ({"prompt": "x", "steps": 0}, "steps"),
        ({"prompt": "x", "steps": 10**6}, "at most"),
        ([], "dictionary"),
    ],
)
def test_a_wrong_body_is_told_what_is_wrong(client: Client, body: Any, complaint: str) -> None:
    response = client.post("/generate_video", json=body)

    assert response.status_code == 422
    assert response.json()["status"] == "error"
    assert complaint in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(client: Client, body: bytes) -> None:
    response = client.post("/generate_video", data=body)

    assert response.status_code == 422
    assert response.json() == {"status": "error", "error": "The body is not valid JSON."}


def test_a_body_larger_than_any_valid_one_is_refused(client: Client) -> None:
    response = client.post("/generate_video", data=b"x" * (2**20 + 1))

    assert response.status_code == 413
    assert response.json()["status"] == "error"


def test_other_requests_are_answered_while_a_client_waits_for_its_clip(client: Client) -> None:
    answers: list[dict[str, Any]] = []
    body = {"prompt": "x", "steps": 1000}
    waiting = threading.Thread(
        target=lambda: answers.append(client.post("/generate_video", json=body).json())
    )
    waiting.start()
    job = wait_for_job(client)
    client.wait_for_step(job["id"])
    assert client.node.health()["running"] == 1
    assert not answers

    client.cancel(job["id"])
    waiting.join(60)

    assert answers == [{"status": "error", "error": "The video was canceled."}]


def test_a_client_that_hangs_up_does_not_end_its_job(client: Client) -> None:
    body = {"prompt": "y", "steps": 150}
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{client.node.url}/generate_video", headers=client.node.headers, json=body, timeout=0.2
        )

    job = wait_for_job(client)
    assert client.finish(job["id"])["status"] == "completed"


def test_the_same_key_twice_is_one_clip_here_too(client: Client) -> None:
    body = {"prompt": "x", "frames": 9, "steps": 2}
    headers = {"Idempotency-Key": "field-1"}

    answers = [client.post("/generate_video", json=body, headers=headers).json() for _ in range(2)]

    assert answers[0]["status"] == "ok"
    assert answers[0] == answers[1]


def wait_for_job(client: Client) -> dict[str, Any]:
    """The job that runs."""
    client.node.wait_for("ready")
    while True:
        for job in client.get("/v1/videos").json()["data"]:
            if job["status"] == "in_progress":
                return dict(job)


def test_both_protocols_share_one_queue_and_a_full_one_says_when_to_come_back(client: Client) -> None:
    jobs = [client.create_long(seed=number) for number in range(3)]
    client.wait_for_step(jobs[0]["id"])
    assert client.node.health()["status"] == "busy"

    response = client.post("/generate_video", json={"prompt": "x"})

    assert response.status_code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 120
    assert response.json() == {"status": "error", "error": "The queue is full. Please try again later."}


class TestDownloads:
    @pytest.fixture
    def name(self, session_node: NodeProcess, clip: bytes) -> str:
        matching = [path for path in session_node.save_dir.glob("*.mp4") if path.read_bytes() == clip]
        return matching[0].name

    def test_a_range_is_part_of_the_file(self, client: Client, name: str, clip: bytes) -> None:
        first = client.get(f"/get_video/{name}", headers={"Range": "bytes=0-1"})
        assert (first.status_code, first.content) == (206, clip[:2])
        assert first.headers["Content-Range"] == f"bytes 0-1/{len(clip)}"

        last = client.get(f"/get_video/{name}", headers={"Range": "bytes=-5"})
        assert (last.status_code, last.content) == (206, clip[-5:])

        rest = client.get(f"/get_video/{name}", headers={"Range": "bytes=100-"})
        assert (rest.status_code, rest.content) == (206, clip[100:])

    def test_a_range_behind_the_end_is_416(self, client: Client, name: str, clip: bytes) -> None:
        response = client.get(f"/get_video/{name}", headers={"Range": f"bytes={len(clip)}-"})

        assert response.status_code == 416
        assert response.headers["Content-Range"].endswith(f"*/{len(clip)}")

    def test_a_range_of_another_version_is_the_whole_file(
        self, client: Client, name: str, clip: bytes
    ) -> None:
        headers = {"Range": "bytes=0-1", "If-Range": '"another"'}

        response = client.get(f"/get_video/{name}", headers=headers)

        assert (response.status_code, response.content) == (200, clip)

    def test_head_tells_the_size_and_sends_nothing(self, client: Client, name: str, clip: bytes) -> None:
        response = client.request("HEAD", f"/get_video/{name}")

        assert response.status_code == 200
        assert response.headers["Content-Length"] == str(len(clip))
        assert response.headers["Content-Type"] == "video/mp4"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.content == b""

    def test_without_the_key_it_is_401(self, gpu_node: NodeProcess, name: str) -> None:
        assert requests.get(f"{gpu_node.url}/get_video/{name}", timeout=10).status_code == 401

    @pytest.mark.parametrize(
        "name",
        [
            "0" * 32 + ".mp4",
            "0" * 32 + ".json",
            "..%2f..%2fetc%2fpasswd",
            "%2e%2e",
            "x%00.mp4",
            "..%5cx.mp4",
            "nope.mp4",
            "%0a" + "0" * 32 + ".mp4",
        ],
    )
    def test_a_name_that_is_not_there_or_never_was_given_is_404(self, client: Client, name: str) -> None:
        response = client.get(f"/get_video/{name}")

        assert response.status_code == 404
        assert response.json()["status"] == "error"

    def test_a_record_beside_a_clip_is_not_served(self, client: Client, name: str) -> None:
        assert client.get(f"/get_video/{name.replace('.mp4', '.json')}").status_code == 404
