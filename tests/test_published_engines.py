"""Engines of others as nodes, at the wire: requests and answers have the shapes that vLLM-Omni and SGLang publish.

Written from vllm_omni/entrypoints/openai/protocol/videos.py and api_server.py (vllm-project/vllm-omni), and from
sglang/multimodal_gen/runtime/entrypoints/{http_server,openai/video_api,openai/protocol}.py (sgl-project/sglang).
Neither knows Idempotency-Key, Prefer or a cancel route; neither counts steps.
"""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from generation import nodes
from generation.nodes import (
    GenerationRequest,
    NodeClient,
    NodeEndpoint,
    RemoteJob,
    detect_protocol,
    open_client,
)
from tests.videos_server import Job, Routes, Server

T = TypeVar("T")

# The fields of vLLM-Omni's form that a text-to-video request may have, with what each is parsed as and its bounds.
VLLM_FIELDS: dict[str, Callable[[str], bool]] = {
    "prompt": bool,
    "model": bool,
    "size": lambda value: bool(re.fullmatch(r"\d+x\d+", value)),
    "num_frames": lambda value: int(value) >= 1,
    "fps": lambda value: int(value) >= 1,
    "num_inference_steps": lambda value: 1 <= int(value) <= 200,
    "guidance_scale": lambda value: 0 <= float(value) <= 20,
    "seed": lambda value: int(value) is not None,
    "negative_prompt": bool,
}


class VllmOmniRoutes(Routes):
    """Forms only; a job's record as `VideoResponse` has it; DELETE stops the job."""

    def do_POST(self) -> None:  # noqa: N802
        raw = self._body()
        if not self._admitted():
            return None
        if self.path != "/v1/videos":
            return self._answer(404, {"detail": "Not Found"})
        fields = self._form(raw)
        unsound = [
            name for name, value in fields.items() if name not in VLLM_FIELDS or not VLLM_FIELDS[name](value)
        ]
        if "prompt" not in fields or unsound:
            loc = ["body", *(unsound or ["prompt"])]
            return self._answer(422, {"detail": [{"type": "missing", "loc": loc, "msg": "Field required"}]})
        return self._answer(200, self.server_state.shown(self.server_state.create(fields)))


class VllmOmni(Server):
    def shown(self, job: Job) -> dict[str, Any]:
        error = {"code": 500, "message": "CUDA out of memory."} if job.error else None  # its code is a number
        return job.public() | {
            "seconds": "4",
            "quality": "default",
            "remixed_from_video_id": None,
            "error": error,
            "media_type": "video/mp4",
            "expires_at": None,
            "stage_durations": {},
            "peak_memory_mb": 0.0,
        }


class SglangRoutes(Routes):
    """JSON, and forms with a picture only; a status that stays `queued`; DELETE forgets the record."""

    def do_GET(self) -> None:  # noqa: N802
        if self.path == "/health":
            return self._answer(200, {"status": "ok"})
        return super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        raw = self._body()
        if not self._admitted():
            return None
        if self.path != "/v1/videos":
            return self._answer(404, {"detail": "Not Found"})
        if "multipart/form-data" in self.headers.get("Content-Type", ""):
            return self._answer(400, {"detail": "input_reference file is required"})
        fields = {name: str(value) for name, value in json.loads(raw).items()}
        if "prompt" not in fields:
            return self._answer(400, {"detail": "Invalid request body: 1 validation error"})
        return self._answer(200, self.server_state.shown(self.server_state.create(fields)))

    def do_DELETE(self) -> None:  # noqa: N802
        job = self.server_state.jobs.pop(self.path.removeprefix("/v1/videos/"), None)
        if job is None:
            return self._answer(404, {"detail": "Video not found"})
        return self._answer(200, self.server_state.shown(job) | {"status": "deleted"})


class Sglang(Server):
    def shown(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "object": "video",
            "model": "sora-2",
            "status": "queued" if job.status == "in_progress" else job.status,
            "progress": 100 if job.status == "completed" else 0,
            "created_at": job.created_at,
            "size": job.fields.get("size"),
            "seconds": "2",
            "quality": "standard",
            "remixed_from_video_id": None,
            "completed_at": None,
            "expires_at": None,
            "error": {"message": "Model generation returned no output."} if job.error else None,
        }


@dataclass
class Engine:
    """One of them, serving on a port."""

    state: Server
    url: str
    endpoint: NodeEndpoint = field(init=False)

    def __post_init__(self) -> None:
        self.endpoint = NodeEndpoint(base_url=self.url, api_key=self.state.key, protocol="videos")


ENGINES = {"vllm-omni": (VllmOmni, VllmOmniRoutes), "sglang": (Sglang, SglangRoutes)}


@contextmanager
def serving(name: str, *, seconds: float = 0.2, fault: str = "none") -> Iterator[Engine]:
    kind, routes = ENGINES[name]
    state = kind(key="secret", seconds=seconds, fault=fault, deletes=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (routes,), {"server_state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Engine(state, f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()
    thread.join()


def ask(engine: Engine, act: Callable[[NodeClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_client(engine.endpoint) as client:
            return await act(client)

    return asyncio.run(run())


async def followed(client: NodeClient, job: RemoteJob) -> RemoteJob:
    async with asyncio.timeout(60):
        while not job.finished:
            assert job.remote_id is not None
            job = await client.retrieve(job.remote_id, wait=20)
            await asyncio.sleep(0.05)
    return job


REQUEST = GenerationRequest(
    id="attempt-1",
    prompt="a red fox in the snow",
    negative_prompt="blurred",
    num_frames=16,
    fps=8,
    num_inference_steps=20,
    guidance_scale=6.0,
    seed=7,
    size="96x64",
)

pytestmark = pytest.mark.parametrize("name", ENGINES)


def test_a_clip_is_asked_for_followed_and_fetched(name: str, tmp_path: Path) -> None:
    async def act(client: NodeClient) -> RemoteJob:
        job = await followed(client, await client.submit(REQUEST))
        await client.download(job, tmp_path / "clip.mp4")
        return job

    with serving(name) as engine:
        job = ask(engine, act)
        fields = next(iter(engine.state.jobs.values())).fields

    assert (job.state, job.progress) == ("completed", 100)
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    assert fields["prompt"] == REQUEST.prompt
    assert (fields["num_frames"], fields["fps"], fields["size"], fields["seed"]) == ("16", "8", "96x64", "7")
    assert (fields["num_inference_steps"], fields["guidance_scale"]) == ("20", "6.0")


def test_its_protocol_and_its_model_are_found_out(name: str) -> None:
    with serving(name) as engine:
        assert asyncio.run(detect_protocol(engine.endpoint)) == "videos"
        health = ask(engine, lambda client: client.health())

    assert health.ready
    assert health.model == "Wan-AI/Wan2.2-T2V"
    assert health.seconds_per_step is None


def test_no_steps_are_made_up(name: str) -> None:
    async def act(client: NodeClient) -> RemoteJob:
        job = await client.submit(REQUEST)
        assert job.remote_id is not None
        return await client.retrieve(job.remote_id, wait=1)

    with serving(name, seconds=30) as engine:
        job = ask(engine, act)

    assert job.state in ("queued", "in_progress")
    assert (job.step, job.stopped_at_step) == (None, None)


def test_a_post_whose_answer_was_lost_is_another_job_and_harms_nobody(name: str) -> None:
    """No idempotency there: what is repeated is made twice, and each is followed by its own id."""

    async def act(client: NodeClient) -> tuple[RemoteJob, RemoteJob]:
        first, second = await client.submit(REQUEST), await client.submit(REQUEST)
        return await followed(client, first), await followed(client, second)

    with serving(name) as engine:
        first, second = ask(engine, act)

    assert first.remote_id != second.remote_id
    assert (first.state, second.state) == ("completed", "completed")


def test_canceling_deletes_and_the_job_is_gone(name: str) -> None:
    async def act(client: NodeClient) -> RemoteJob | None:
        job = await client.submit(REQUEST)
        assert job.remote_id is not None
        stopped = await client.cancel(job.remote_id)
        with pytest.raises(nodes.RemoteJobLost):
            await client.retrieve(job.remote_id)
        return stopped

    with serving(name, seconds=30) as engine:
        stopped = ask(engine, act)

    assert stopped is not None
    assert (stopped.state, stopped.stopped_at_step) == ("canceled", None), "it does not say where it stopped"


def test_a_failed_job_says_why(name: str) -> None:
    async def act(client: NodeClient) -> RemoteJob:
        return await followed(client, await client.submit(REQUEST))

    with serving(name, fault="failing") as engine:
        job = ask(engine, act)

    assert (job.state, job.error_code) == ("failed", None)
    assert job.error in ("CUDA out of memory.", "Model generation returned no output.")


def test_a_clip_that_is_not_there_yet_is_not_taken_for_one(name: str, tmp_path: Path) -> None:
    async def act(client: NodeClient) -> None:
        await client.download(await client.submit(REQUEST), tmp_path / "clip.mp4")

    with serving(name, seconds=30) as engine, pytest.raises(nodes.NodeError):
        ask(engine, act)

    assert not list(tmp_path.iterdir())
