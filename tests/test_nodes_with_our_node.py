"""The clients against our own GPU node with the tiny model: the two ends of the contract, met over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from generation import media, nodes
from generation.nodes import GenerationRequest, NodeClient, NodeEndpoint, RemoteJob, open_client
from tests.clips import facts_of
from tests.node_process import NodeProcess

T = TypeVar("T")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess.start(tmp_path_factory.mktemp("node")) as node:
        yield node


def with_client(
    node: NodeProcess,
    act: Callable[[NodeClient], Awaitable[T]],
    *,
    protocol: str = "videos",
    key: str = "",
) -> T:
    endpoint = NodeEndpoint(base_url=node.url, api_key=key or node.key, protocol=protocol)

    async def run() -> T:
        async with asyncio.timeout(120), open_client(endpoint) as client:
            return await act(client)

    return asyncio.run(run())


def request(key: str, **fields: Any) -> GenerationRequest:
    quick = {"prompt": "a fox crosses the snow", "num_frames": 9, "num_inference_steps": 4, "seed": 1}
    return GenerationRequest(**{"id": key, **quick, **fields})


async def followed(client: NodeClient, job: RemoteJob) -> list[RemoteJob]:
    seen = [job]
    while not seen[-1].finished:
        seen.append(await client.retrieve(job.remote_id or "", wait=20))
    return seen


def test_it_is_recognised_and_says_how_it_is(node: NodeProcess) -> None:
    detected = asyncio.run(nodes.detect_protocol(NodeEndpoint(base_url=node.url, api_key=node.key)))
    assert detected == "videos"
    health = with_client(node, lambda client: client.health())
    assert (health.ready, health.status, health.backend) == (True, "ready", "CogVideoX-tiny-random")
    assert (health.capacity, health.detail["queue_depth"]) == (1, 0)
    assert health.sizes


def test_a_job_is_followed_step_by_step_and_fetched(node: NodeProcess, tmp_path: Path) -> None:
    async def act(client: NodeClient) -> list[RemoteJob]:
        seen = await followed(client, await client.submit(request("steps", num_inference_steps=12)))
        await client.download(seen[-1], tmp_path / "clip.mp4")
        return seen

    seen = with_client(node, act)
    assert (seen[-1].state, seen[-1].progress, seen[-1].step) == ("completed", 100, 12)
    assert seen[-1].generation_ms
    assert seen[-1].profile == "exact"
    steps = [job.step or 0 for job in seen]
    assert steps == sorted(steps)
    # Held until something changes: many answers, each with news, and no busy polling.
    assert 2 < len(seen) < 40
    facts = media.prepare(tmp_path / "clip.mp4", tmp_path / "playable.mp4", tmp_path / "poster.jpg")
    assert (facts.frames, facts.fps, facts.codec, facts.pix_fmt) == (9, 8.0, "h264", "yuv420p")
    # What our node makes plays as it is.
    assert (tmp_path / "playable.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()


def test_a_repeated_submit_is_the_same_job(node: NodeProcess) -> None:
    async def act(client: NodeClient) -> tuple[RemoteJob, RemoteJob]:
        first, second = await client.submit(request("twin")), await client.submit(request("twin"))
        await followed(client, second)
        return first, second

    first, second = with_client(node, act)
    assert first.remote_id == second.remote_id


def test_a_cancel_stops_within_the_run_and_says_where(node: NodeProcess) -> None:
    async def act(client: NodeClient) -> RemoteJob | None:
        job = await client.submit(request("canceled", num_inference_steps=200, num_frames=17))
        while not job.step:
            job = await client.retrieve(job.remote_id or "", wait=20)
        return await client.cancel(job.remote_id or "")

    stopped = with_client(node, act)
    assert stopped is not None
    assert stopped.state == "canceled"
    assert stopped.stopped_at_step
    assert 0 < stopped.stopped_at_step < 200


def test_files_are_for_the_nodes_own_user_and_a_deleted_video_leaves_nothing_there(node: NodeProcess) -> None:
    prompt = "a quokka that nobody else may see"

    async def make(client: NodeClient) -> str:
        done = (await followed(client, await client.submit(request("private", prompt=prompt))))[-1]
        return done.remote_id or ""

    def holding() -> list[Path]:
        files = [
            file for file in node.save_dir.parent.rglob("*") if file.is_file() and "log" not in file.name
        ]
        assert [file for file in files if node.save_dir in file.parents and file.stat().st_mode & 0o077] == []
        return [
            file
            for file in files
            if prompt.encode() in file.read_bytes() or remote_id.split("_")[-1] in file.name
        ]

    remote_id = with_client(node, make)
    assert holding()
    with_client(node, lambda client: client.forget(remote_id))
    assert holding() == []
    with pytest.raises(nodes.RemoteJobLost):
        with_client(node, lambda client: client.retrieve(remote_id))


def test_waiting_for_a_finished_job_does_not_wait(node: NodeProcess) -> None:
    async def act(client: NodeClient) -> float:
        job = (await followed(client, await client.submit(request("done"))))[-1]
        started = time.monotonic()
        await client.retrieve(job.remote_id or "", wait=50)
        return time.monotonic() - started

    assert with_client(node, act) < 40


def test_bad_requests_unknown_jobs_and_wrong_keys(node: NodeProcess, tmp_path: Path) -> None:
    with pytest.raises(nodes.NodeRejected):
        with_client(node, lambda client: client.submit(request("bad", num_frames=0)))
    with pytest.raises(nodes.NodeRejected):
        with_client(node, lambda client: client.submit(request("size", size="33x33")))
    with pytest.raises(nodes.RemoteJobLost):
        with_client(node, lambda client: client.retrieve("video_unknown"))
    with pytest.raises(nodes.RemoteJobLost):
        with_client(node, lambda client: client.cancel("video_unknown"))
    with pytest.raises(nodes.NodeUnauthorized):
        with_client(node, lambda client: client.submit(request("key")), key="wrong")


def test_the_field_protocol_of_our_node_serves_the_field_client(node: NodeProcess, tmp_path: Path) -> None:
    async def act(client: NodeClient) -> RemoteJob:
        job = await client.generate(request("field", num_frames=16), timeout=90)
        await client.download(job, tmp_path / "clip.mp4")
        return job

    job = with_client(node, act, protocol="generate_video")
    assert job.state == "completed"
    assert job.generation_ms
    assert facts_of(tmp_path / "clip.mp4").frames == 16
    with pytest.raises(nodes.NodeRejected):
        with_client(
            node, lambda client: client.generate(request("bad", num_frames=-1)), protocol="generate_video"
        )
