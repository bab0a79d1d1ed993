"""A node whose model starts from a picture, and the smaller and newer models: over HTTP, at tiny shapes."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.gpu_node import variants
from tests.gpu_node.client import Client, frames_of
from tests.node_process import NodeProcess

FIELDS = {"prompt": "it moves", "num_frames": "9", "num_inference_steps": "2", "seed": "1"}


@pytest.fixture(scope="module")
def image_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder = variants.save("CogVideoX-5B-I2V", tmp_path_factory.mktemp("models") / "mini-I2V")
    env = {"GPU_NODE_MODEL": str(folder), "GPU_NODE_DEVICE": "cpu"}
    with NodeProcess.start(tmp_path_factory.mktemp("node"), env=env) as node:
        yield node


@pytest.fixture
def client(image_node: NodeProcess) -> Client:
    return Client(image_node)


def picture(colour: str = "red", kind: str = "PNG", size: tuple[int, int] = (200, 100)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def post(client: Client, data: bytes | None, **fields: str) -> Any:
    parts: dict[str, Any] = {name: (None, value) for name, value in (FIELDS | fields).items()}
    if data is not None:
        parts["input_reference"] = ("start", data)
    return client.post("/v1/videos", files=parts)


def test_a_clip_starts_from_the_picture(client: Client) -> None:
    job = client.finish(post(client, picture()).json()["id"])
    other = client.finish(post(client, picture("blue", "JPEG")).json()["id"])

    first, second = (frames_of(client.content(made["id"])) for made in (job, other))
    assert first.shape == (9, 64, 96, 3)
    assert numpy.mean(first != second) > 0.1
    assert not list(client.node.save_dir.glob("*.image")), "the picture goes when the job has ended"


def test_the_same_picture_and_seed_are_the_same_clip(client: Client) -> None:
    jobs = [client.finish(post(client, picture()).json()["id"]) for _ in range(2)]

    assert client.content(jobs[0]["id"]) == client.content(jobs[1]["id"])


def test_json_may_bring_it_as_a_data_url(client: Client) -> None:
    url = "data:image/webp;base64," + base64.b64encode(picture(kind="WEBP")).decode()
    body = {"prompt": "x", "num_frames": 9, "num_inference_steps": 2, "input_reference": {"image_url": url}}

    job = client.post("/v1/videos", json=body).json()

    assert client.finish(job["id"])["status"] == "completed"


def test_another_picture_under_the_same_key_is_another_request(client: Client) -> None:
    parts = {"prompt": (None, "x"), "num_inference_steps": (None, "2"), "num_frames": (None, "9")}
    headers = {"Idempotency-Key": "picture-1"}
    answers = [
        client.post("/v1/videos", files=parts | {"input_reference": ("a", data)}, headers=headers)
        for data in (picture(), picture(), picture("blue"))
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 422]
    assert answers[0].json()["id"] == answers[1].json()["id"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "starts from a picture"),
        (b"no picture", "not a sound PNG, JPEG or WebP"),
        (picture()[:60], "not a sound PNG, JPEG or WebP"),
        (picture(kind="GIF"), "not a sound PNG, JPEG or WebP"),
    ],
)
def test_what_is_no_picture_is_told(client: Client, data: bytes | None, words: str) -> None:
    response = post(client, data)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "input_reference"
    assert words in response.json()["error"]["message"]


def test_other_peoples_addresses_are_not_fetched(client: Client) -> None:
    response = client.post(
        "/v1/videos", json={"prompt": "x", "input_reference": {"image_url": "http://127.0.0.1/"}}
    )

    assert response.status_code == 400
    assert "data: URL" in response.json()["error"]["message"]


def test_a_size_that_the_model_cannot_make_is_refused_at_once(client: Client) -> None:
    response = post(client, picture(), size="64x32")

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "size: mini-I2V makes 96x64 only"


def test_the_field_protocol_says_that_it_brings_no_picture(client: Client) -> None:
    response = client.post("/generate_video", json={"prompt": "x"})

    assert response.status_code == 422
    assert "starts from a picture" in response.json()["error"]


def test_health_says_that_a_picture_is_needed(client: Client) -> None:
    assert client.node.health()["takes_image"] is True


def test_the_newer_models_make_clips_too(tmp_path: Path) -> None:
    folder = variants.save("CogVideoX1.5-5B", tmp_path / "mini-CogVideoX1.5-5B")
    env = {"GPU_NODE_MODEL": str(folder), "GPU_NODE_DEVICE": "cpu"}
    with NodeProcess.start(tmp_path / "node", env=env) as node:
        clip = frames_of(Client(node).make(num_frames=16))

        assert clip.shape == (16, 32, 64, 3)
        assert clip.std() > 1
