"""A small client of the node under test, and a look into the clips it makes."""

import io
from typing import Any

import av
import numpy
import requests

from tests.node_process import NodeProcess, wait_until

SMALL = {"size": "64x32", "num_frames": 9, "num_inference_steps": 2, "fps": 8, "seed": 1}
LONG_STEPS = 1000  # some ten seconds even of the tiny model: long enough to do something to the job meanwhile


class Client:
    """Requests to one node, with its key."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self._session = requests.Session()
        self._session.headers.update(node.headers)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._session.request(method, self.node.url + path, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.request("POST", path, **options)

    def create(self, prompt: str = "a red ball", *, key: str | None = None, **fields: Any) -> dict[str, Any]:
        """A job that was accepted; small and quick unless told otherwise."""
        headers = {"Idempotency-Key": key} if key else {}
        response = self.post("/v1/videos", json={"prompt": prompt} | SMALL | fields, headers=headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def create_long(self, **fields: Any) -> dict[str, Any]:
        """A job that runs for as long as a test needs it to; the test must cancel it."""
        return self.create("something long", num_inference_steps=LONG_STEPS, **fields)

    def retrieve(self, video_id: str, *, wait: int = 0) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        response = self.get(f"/v1/videos/{video_id}", headers=headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def finish(self, video_id: str) -> dict[str, Any]:
        """The job once it has ended."""

        def ended() -> dict[str, Any] | None:
            job = self.retrieve(video_id, wait=20)
            return job if job["status"] in ("completed", "failed") else None

        return wait_until(ended, what="the job to end")

    def wait_for_step(self, video_id: str, step: int = 2) -> dict[str, Any]:
        """The job once it runs and has done so many steps."""

        job = self.retrieve(video_id)
        while job["step"] < step:
            assert job["status"] in ("queued", "in_progress"), job
            job = self.retrieve(video_id, wait=1)  # the step may have come between two questions
        return job

    def cancel(self, video_id: str) -> dict[str, Any]:
        response = self.post(f"/v1/videos/{video_id}/cancel")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def make(self, prompt: str = "a red ball", **fields: Any) -> bytes:
        """A finished clip."""
        job = self.finish(self.create(prompt, **fields)["id"])
        assert job["status"] == "completed", job
        return self.content(job["id"])

    def content(self, video_id: str) -> bytes:
        response = self.get(f"/v1/videos/{video_id}/content")
        assert response.status_code == 200, response.text
        return response.content


def frames_of(clip: bytes) -> "numpy.ndarray[Any, Any]":
    """Every frame of an MP4, decoded: shape (count, height, width, 3)."""
    with av.open(io.BytesIO(clip)) as container:
        return numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def boxes_of(clip: bytes) -> list[str]:
    """The names of an MP4's outermost boxes, in order."""
    names, position = [], 0
    while position < len(clip):
        size = int.from_bytes(clip[position : position + 4], "big")
        names.append(clip[position + 4 : position + 8].decode("ascii"))
        position += size
    return names
