"""The clients of GPU nodes, against real servers over HTTP: every bad day of a node has its own kind of error."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from generation import nodes
from generation.nodes import GenerationRequest, NodeClient, NodeEndpoint, RemoteJob, open_client, protocol
from generation.nodes.download import ATTEMPTS
from generation.nodes.transport import Answer, Transport, error_for_status, message_of, retry_after
from tests import web
from tests.field_node import FieldNode, make_clip
from tests.videos_server import VideosServer

T = TypeVar("T")
PROMPT = "A fox crosses the snow"
KEY = "field-key"


@pytest.fixture(scope="module")
def running_field_node() -> Iterator[FieldNode]:
    with FieldNode.start(key=KEY) as node:
        yield node


@pytest.fixture
def field_node(running_field_node: FieldNode) -> Iterator[FieldNode]:
    running_field_node.set_fault("none")
    yield running_field_node
    running_field_node.set_fault("none")


@pytest.fixture(scope="module")
def videos_server() -> Iterator[VideosServer]:
    with VideosServer.start(key="vllm-key", seconds=0.05) as server:
        yield server


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"id": "a1b2", "prompt": PROMPT, **fields})


def with_client(endpoint: NodeEndpoint, act: Callable[[NodeClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_client(endpoint) as client:
            return await act(client)

    return asyncio.run(run())


def field(node: FieldNode, *, key: str = KEY) -> NodeEndpoint:
    return NodeEndpoint(base_url=node.url, api_key=key, protocol="generate_video")


def videos(server: VideosServer, *, key: str | None = None) -> NodeEndpoint:
    return NodeEndpoint(base_url=server.url, api_key=server.key if key is None else key, protocol="videos")


def generate(node: FieldNode, *, timeout: float = 30.0, key: str = KEY) -> RemoteJob:
    return with_client(field(node, key=key), lambda client: client.generate(request(), timeout=timeout))


def download(node: FieldNode, job: RemoteJob, to: Path, **limits: Any) -> int:
    return with_client(field(node), lambda client: client.download(job, to, **limits))


async def followed(client: NodeClient, job: RemoteJob) -> RemoteJob:
    """Poll until the job has ended, as the reconciler does with a server that does not hold its answers."""
    async with asyncio.timeout(60):
        while not job.finished:
            await asyncio.sleep(0.05)
            job = await client.retrieve(job.remote_id or "", wait=5)
    return job


# --- The field protocol ----------------------------------------------------------------------------------------


def test_a_field_node_makes_a_clip_that_can_be_fetched(field_node: FieldNode, tmp_path: Path) -> None:
    job = generate(field_node)
    assert (job.state, job.progress, job.remote_id) == ("completed", 100, None)
    assert job.generation_ms is not None
    size = download(field_node, job, tmp_path / "clip.mp4")
    data = (tmp_path / "clip.mp4").read_bytes()
    assert len(data) == size
    assert data[4:8] == b"ftyp"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_field_node_is_asked_exactly_what_the_protocol_says(field_node: FieldNode) -> None:
    fields = request(
        num_frames=9, fps=4, num_inference_steps=3, seed=7, negative_prompt="fog", size="720x480"
    )
    with_client(field(field_node), lambda client: client.generate(fields, timeout=30))
    asked = field_node.requests("/generate_video")[-1]
    assert httpx.Response(200, text=asked["body"]).json() == {
        "prompt": PROMPT,
        "frames": 9,
        "fps": 4,
        "steps": 3,
    }
    assert asked["headers"]["x-api-key"] == KEY
    assert asked["headers"]["content-type"] == "application/json"


def test_a_field_node_says_how_it_is(field_node: FieldNode) -> None:
    health = with_client(field(field_node), lambda client: client.health())
    assert health.ready
    assert (health.status, health.backend, health.capacity) == ("ready", "CogVideoX-5B", 1)
    assert health.protocol == "generate_video"


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("http400", nodes.NodeRejected, "prompt not allowed"),
        ("http429", nodes.NodeBusy, "queue full"),
        ("http503", nodes.NodeBusy, "busy"),
        ("http500", nodes.NodeServerError, "500"),
        ("drop_connection", nodes.NodeUnreachable, "connection"),
        ("html200", nodes.NodeAnsweredNonsense, "web page"),
        ("empty200", nodes.NodeAnsweredNonsense, "nothing"),
        ("list200", nodes.NodeAnsweredNonsense, "not an object"),
        ("huge_json", nodes.NodeAnsweredNonsense, "too long"),
        ("deep_json", nodes.NodeAnsweredNonsense, "instead of JSON"),
        ("redirect", nodes.NodeAnsweredNonsense, "redirect"),
        ("wrong_type", nodes.NodeAnsweredNonsense, "named no file"),
        ("traversal", nodes.NodeAnsweredNonsense, "not allowed"),
        ("traversal_encoded", nodes.NodeAnsweredNonsense, "not allowed"),
    ],
)
def test_each_bad_answer_is_its_own_kind_of_error(
    field_node: FieldNode, fault: str, kind: type[nodes.NodeError], says: str
) -> None:
    field_node.set_fault(fault)
    with pytest.raises(kind, match=says) as caught:
        generate(field_node)
    assert type(caught.value) is kind
    assert KEY not in str(caught.value)


def test_a_busy_node_says_for_how_long(field_node: FieldNode) -> None:
    field_node.set_fault("http429")
    with pytest.raises(nodes.NodeBusy) as caught:
        generate(field_node)
    assert caught.value.retry_after == 7


def test_a_node_that_hangs_is_given_up_after_the_time_allowed(field_node: FieldNode) -> None:
    field_node.set_fault("hang")
    with pytest.raises(nodes.NodeTimeout, match=r"within 0\.3 s"):
        generate(field_node, timeout=0.3)


def test_a_slow_node_is_waited_for(field_node: FieldNode) -> None:
    field_node.set_fault("slow:0.5")
    assert generate(field_node, timeout=30).state == "completed"


def test_a_failure_that_the_node_reports_is_a_failed_job(field_node: FieldNode) -> None:
    field_node.set_fault("error_status")
    job = generate(field_node)
    assert (job.state, job.error, job.file_name) == ("failed", "CUDA out of memory", None)


def test_a_wrong_key_is_unauthorized_everywhere(field_node: FieldNode, tmp_path: Path) -> None:
    job = generate(field_node)
    with pytest.raises(nodes.NodeUnauthorized):
        generate(field_node, key="wrong")
    with pytest.raises(nodes.NodeUnauthorized):
        with_client(field(field_node, key=""), lambda client: client.download(job, tmp_path / "clip.mp4"))


def test_an_address_without_a_server_is_not_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = NodeEndpoint(
            base_url=f"http://127.0.0.1:{free.getsockname()[1]}", protocol="generate_video"
        )
        with pytest.raises(nodes.NodeNotReached, match="No connection"):
            with_client(endpoint, lambda client: client.health())


def test_an_unhealthy_node_is_a_server_error(field_node: FieldNode) -> None:
    field_node.set_fault("unhealthy")
    with pytest.raises(nodes.NodeServerError):
        with_client(field(field_node), lambda client: client.health())


def test_a_field_node_has_no_background_jobs(field_node: FieldNode) -> None:
    with pytest.raises(nodes.PermanentNodeError, match="takes no jobs to run in the background"):
        with_client(field(field_node), lambda client: client.submit(request()))
    with pytest.raises(nodes.PermanentNodeError, match="has no jobs to ask for"):
        with_client(field(field_node), lambda client: client.retrieve("x"))
    assert with_client(field(field_node), lambda client: client.cancel("x")) is None


# --- Fetching the file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("download401", nodes.NodeUnauthorized),
        ("download404", nodes.RemoteJobLost),
        ("download500", nodes.NodeServerError),
        ("download_html", nodes.NodeAnsweredNonsense),
        ("download_redirect", nodes.NodeAnsweredNonsense),
        ("truncated", nodes.NodeUnreachable),
        ("gzip", nodes.NodeAnsweredNonsense),
    ],
)
def test_each_bad_download_is_its_own_kind_of_error_and_leaves_nothing(
    field_node: FieldNode, tmp_path: Path, fault: str, kind: type[nodes.NodeError], quick_retries: None
) -> None:
    job = generate(field_node)
    field_node.set_fault(fault)
    with pytest.raises(kind):
        download(field_node, job, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generation.nodes.download.LONGEST_PAUSE", 0.01)


def test_a_file_that_is_no_video_is_refused_by_its_first_bytes(
    field_node: FieldNode, tmp_path: Path, quick_retries: None
) -> None:
    field_node.set_fault("not_video")
    job = generate(field_node)
    with pytest.raises(nodes.NodeAnsweredNonsense, match="no video"):
        download(field_node, job, tmp_path / "clip.mp4")


@pytest.mark.parametrize("fault", ["flaky", "flaky_no_range", "flaky_changed", "no_length"])
def test_a_download_that_breaks_comes_together_all_the_same(
    field_node: FieldNode, tmp_path: Path, fault: str, quick_retries: None
) -> None:
    job = generate(field_node)
    field_node.set_fault(fault)
    size = download(field_node, job, tmp_path / "clip.mp4")
    field_node.set_fault("none")
    whole = web.get(f"{field_node.url}/get_video/{job.file_name}", headers={"x-api-key": KEY}).content
    got = (tmp_path / "clip.mp4").read_bytes()
    assert len(got) == size
    # The changed file is fetched anew and whole, never glued to the first half of the old one.
    assert (got == whole) is (fault != "flaky_changed")
    assert got[4:8] == b"ftyp"
    if fault == "flaky_changed":
        assert got == make_clip(seed="another file", frames=20)


def test_a_broken_download_goes_on_where_it_broke(
    field_node: FieldNode, tmp_path: Path, quick_retries: None
) -> None:
    job = generate(field_node)
    field_node.set_fault("flaky")
    download(field_node, job, tmp_path / "clip.mp4")
    asked = [entry["headers"] for entry in field_node.requests(f"/get_video/{job.file_name}")]
    assert "range" not in asked[0]
    starts = [int(headers["range"].removeprefix("bytes=").rstrip("-")) for headers in asked[1:]]
    assert starts == sorted(set(starts))
    assert all(headers["if-range"].startswith('"') for headers in asked[1:])


def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(
    field_node: FieldNode, tmp_path: Path
) -> None:
    job = generate(field_node)
    with pytest.raises(nodes.ResultTooLarge, match="100 are allowed"):
        download(field_node, job, tmp_path / "clip.mp4", max_bytes=100)


def test_a_download_without_end_is_cut_off(field_node: FieldNode, tmp_path: Path) -> None:
    job = generate(field_node)
    field_node.set_fault("endless")
    with pytest.raises(nodes.ResultTooLarge):
        download(field_node, job, tmp_path / "clip.mp4", max_bytes=1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_stands_still_ends_with_its_time(field_node: FieldNode, tmp_path: Path) -> None:
    job = generate(field_node)
    field_node.set_fault("download_hang")
    with pytest.raises(nodes.NodeTimeout, match=r"within 0\.4 s"):
        download(field_node, job, tmp_path / "clip.mp4", timeout=0.4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../etc/passwd", "..", "", "a/b.mp4", "a%2fb.mp4", "\0.mp4", "-.mp4", None])
def test_a_hostile_file_name_is_never_asked_for(
    field_node: FieldNode, tmp_path: Path, name: str | None, quick_retries: None
) -> None:
    if name in ("../etc/passwd", "a/b.mp4"):
        # What a path is cut down to is its last part, which is harmless, and not there.
        expected: type[nodes.NodeError] = nodes.RemoteJobLost
    else:
        expected = nodes.NodeAnsweredNonsense
    job = RemoteJob(state="completed", file_name=name)
    with pytest.raises(expected):
        download(field_node, job, tmp_path / "clip.mp4")
    assert not [entry for entry in field_node.requests("/get_video") if ".." in entry["path"]]


# --- /v1/videos ------------------------------------------------------------------------------------------------


def test_a_server_that_takes_forms_only_makes_a_clip(videos_server: VideosServer, tmp_path: Path) -> None:
    async def act(client: NodeClient) -> RemoteJob:
        job = await client.submit(request(num_frames=9, fps=4, size="128x96"))
        assert job.remote_id
        job = await followed(client, job)
        await client.download(job, tmp_path / "clip.mp4")
        return job

    before = len(videos_server.requests())
    job = with_client(videos(videos_server), act)
    assert (job.state, job.progress) == ("completed", 100)
    assert job.generation_ms is not None
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"
    posts = [entry["type"] for entry in videos_server.requests()[before:] if entry["method"] == "POST"]
    assert posts[0] == "application/json"
    assert posts[1].startswith("multipart/form-data")


def test_the_client_remembers_that_a_server_takes_forms() -> None:
    async def act(client: NodeClient) -> None:
        await client.submit(request(id="one"))
        await client.submit(request(id="two"))

    with VideosServer.start() as server:
        with_client(videos(server), act)
        kinds = [entry["type"].split(";")[0] for entry in server.requests() if entry["method"] == "POST"]
    assert kinds == ["application/json", "multipart/form-data", "multipart/form-data"]


def test_a_server_that_takes_forms_and_wants_its_model_named_is_given_both() -> None:
    with VideosServer.start(fault="wants_model") as server:
        job = with_client(videos(server), lambda client: client.submit(request()))
    assert job.state in ("queued", "in_progress")


def test_a_server_with_an_empty_health_is_known_by_its_models(videos_server: VideosServer) -> None:
    health = with_client(videos(videos_server), lambda client: client.health())
    assert health.ready
    assert health.model == "Wan-AI/Wan2.2-T2V"


def test_a_request_that_is_itself_at_fault_is_rejected_in_the_servers_words() -> None:
    async def act(client: NodeClient) -> None:
        await client.submit(request(prompt=""))

    with VideosServer.start() as server, pytest.raises(nodes.NodeRejected, match="prompt: Field required"):
        with_client(videos(server), act)


def test_a_server_without_cancel_lets_the_job_run_on() -> None:
    async def act(client: NodeClient) -> tuple[RemoteJob | None, RemoteJob]:
        job = await client.submit(request())
        stopped = await client.cancel(job.remote_id or "")
        return stopped, await followed(client, job)

    with VideosServer.start(seconds=0.3) as server:
        stopped, ended = with_client(videos(server), act)
    assert stopped is None
    assert ended.state == "completed"


def test_a_server_that_stops_what_is_deleted_cancels() -> None:
    async def act(client: NodeClient) -> RemoteJob | None:
        job = await client.submit(request())
        stopped = await client.cancel(job.remote_id or "")
        with pytest.raises(nodes.RemoteJobLost):
            await client.retrieve(job.remote_id or "")
        return stopped

    with VideosServer.start(seconds=5, deletes=True) as server:
        stopped = with_client(videos(server), act)
    assert stopped is not None
    assert stopped.state == "canceled"


def test_canceling_what_has_ended_tells_how_it_ended(videos_server: VideosServer) -> None:
    async def act(client: NodeClient) -> RemoteJob | None:
        job = await followed(client, await client.submit(request()))
        return await client.cancel(job.remote_id or "")

    stopped = with_client(videos(videos_server), act)
    assert stopped is not None
    assert stopped.state == "completed"


def test_a_job_that_fails_on_the_server_gives_its_reason() -> None:
    async def act(client: NodeClient) -> RemoteJob:
        return await followed(client, await client.submit(request()))

    with VideosServer.start(fault="failing") as server:
        job = with_client(videos(server), act)
    assert (job.state, job.error) == ("failed", "CUDA error: device-side assert triggered")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("forgetful", nodes.RemoteJobLost),
        ("other_job", nodes.NodeAnsweredNonsense),
        ("odd_status", nodes.NodeAnsweredNonsense),
        ("busy", nodes.NodeBusy),
    ],
)
def test_each_bad_videos_server_is_its_own_kind_of_error(fault: str, kind: type[nodes.NodeError]) -> None:
    async def act(client: NodeClient) -> None:
        job = await client.submit(request())
        await client.retrieve(job.remote_id or "")

    with VideosServer.start(fault=fault) as server, pytest.raises(kind):
        with_client(videos(server), act)


def test_a_videos_server_refuses_a_wrong_key(videos_server: VideosServer) -> None:
    with pytest.raises(nodes.NodeUnauthorized):
        with_client(videos(videos_server, key="wrong"), lambda client: client.submit(request()))


def test_an_unknown_job_is_lost(videos_server: VideosServer, tmp_path: Path, quick_retries: None) -> None:
    for act in (
        lambda client: client.retrieve("video_gen_unknown"),
        lambda client: client.cancel("video_gen_unknown"),
        lambda client: client.download(
            RemoteJob(state="completed", remote_id="video_gen_unknown"), tmp_path / "clip.mp4"
        ),
    ):
        with pytest.raises(nodes.RemoteJobLost):
            with_client(videos(videos_server), act)


@pytest.mark.parametrize("remote_id", ["", "..", ".", "x" * 2001])
def test_an_id_that_is_none_is_not_asked_for(videos_server: VideosServer, remote_id: str) -> None:
    with pytest.raises(nodes.NodeAnsweredNonsense):
        with_client(videos(videos_server), lambda client: client.retrieve(remote_id))


def test_an_id_with_slashes_stays_below_the_collection(videos_server: VideosServer) -> None:
    with pytest.raises(nodes.NodeError):
        with_client(videos(videos_server), lambda client: client.retrieve("../../health?x=#y"))
    assert videos_server.requests()[-1]["path"] == "/v1/videos/..%2F..%2Fhealth%3Fx%3D%23y"


# --- Servers that answer one thing -----------------------------------------------------------------------------


@contextmanager
def canned(*answers: bytes, seen: list[bytes] | None = None) -> Iterator[str]:
    """A server that answers each connection with the next of these bytes, and then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            # Closing the listener ends this when fewer came than were expected.
            with suppress(OSError):
                for answer in answers:
                    connection, _ = listener.accept()
                    with connection:
                        received = read_request(connection)
                        if seen is not None:
                            seen.append(received)
                        connection.sendall(answer)
                listener.close()  # one more is refused, and does not wait until its patience is at its end

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def read_request(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        head = b"".join(iter(stream.readline, b"\r\n"))
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return head + b"\r\n" + (stream.read(int(length[1])) if length else b"")


def json_answer(body: str, status: str = "200 OK", headers: str = "") -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


def ask(url: str, act: Callable[[NodeClient], Awaitable[T]], *, key: str = "k3y-s3cret") -> T:
    return with_client(NodeEndpoint(base_url=url, api_key=key, protocol="videos"), act)


FULL_JOB = """{"id": "v1", "object": "video", "status": "failed", "progress": 46, "step": 23, "steps": 50,
 "error": {"code": "canceled", "message": "Canceled."}, "stopped_at_step": 23, "queue_position": 0,
 "file_name": "v1.mp4", "generation_time_ms": 1234}"""


def test_our_own_nodes_extra_fields_are_understood() -> None:
    with canned(json_answer(FULL_JOB)) as url:
        job = ask(url, lambda client: client.cancel("v1"))
    assert job == RemoteJob(
        remote_id="v1",
        state="canceled",
        step=23,
        progress=46,
        error="Canceled.",
        error_code="canceled",
        file_name="v1.mp4",
        generation_ms=1234,
        stopped_at_step=23,
    )


@pytest.mark.parametrize(
    "made_with", ['"fast"', '{"profile": 7}', '{"profile": "a b<c>"}', '{"profile": ""}', "[]"]
)
def test_a_profile_that_is_no_plain_word_is_not_believed(made_with: str) -> None:
    with canned(json_answer(f'{{"id": "v1", "status": "completed", "made_with": {made_with}}}')) as url:
        assert ask(url, lambda client: client.retrieve("v1")).profile is None


def test_submitting_sends_json_and_the_attempts_id() -> None:
    seen: list[bytes] = []
    with canned(json_answer('{"id": "v1", "status": "queued"}'), seen=seen) as url:
        ask(url, lambda client: client.submit(request(id="attempt-1", seed=0, guidance_scale=0.0)))
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert b"idempotency-key: attempt-1" in lines
    assert b"x-api-key: k3y-s3cret" in lines
    assert b"authorization: bearer k3y-s3cret" in lines
    sent = httpx.Response(200, content=body).json()
    assert sent == {
        "prompt": PROMPT,
        "num_frames": 16,
        "fps": 8,
        "num_inference_steps": 20,
        "seed": 0,
        "guidance_scale": 0.0,
    }


def test_retrieving_asks_the_node_to_hold_the_answer() -> None:
    seen: list[bytes] = []
    with canned(json_answer('{"id": "v1", "status": "in_progress"}'), seen=seen) as url:
        job = ask(url, lambda client: client.retrieve("v1", wait=20))
    assert b"prefer: wait=20" in seen[0].lower().split(b"\r\n")
    assert (job.state, job.step) == ("in_progress", None)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "[]",
        "null",
        '{"id": 5, "status": "queued"}',
        '{"id": "", "status": "queued"}',
        '{"id": "v1"}',
        '{"id": "v1", "status": null}',
        '{"id": "v1", "status": ["queued"]}',
        '{"id": "v1", "status": "queued"',
        '{"id": "' + "x" * 300 + '", "status": "queued"}',
        '{"id": "two words", "status": "queued"}',
        '{"id": "v\\u00ef", "status": "queued"}',
        "\ufeff",
    ],
)
def test_what_is_no_job_is_nonsense(body: str) -> None:
    with canned(json_answer(body)) as url, pytest.raises(nodes.NodeAnsweredNonsense):
        ask(url, lambda client: client.retrieve("v1"))


def test_extra_fields_of_wrong_types_are_left_out() -> None:
    body = """{"id": "v1", "status": "in_progress", "progress": 1e999, "step": true, "steps": "50", "error": 5,
     "file_name": 3, "generation_time_ms": -4, "queue_position": 2147483648}"""
    with canned(json_answer(body)) as url:
        job = ask(url, lambda client: client.retrieve("v1"))
    assert job == RemoteJob(remote_id="v1", state="in_progress")


WORDS = {
    "queued": "queued Pending in_queue SUBMITTED created waiting not_start scheduled unknown pending_review QUEUEING "
    "throttled on_hold waiting_for_gpu",
    "in_progress": "in_progress IN-PROGRESS processing Running generating STARTED rendering TASK_STATUS_PROCESSING "
    "InProgress canceling loading_model denoising pre-processing postProcessing in_progress_50",
    "completed": "completed Complete SUCCEEDED succeed success done finished JOB_STATE_SUCCEEDED processing_done "
    "completed_with_warnings Generated",
    "failed": "failed FAILURE error Rejected moderated expired timed_out TASK_STATUS_FAILED content_filtered "
    "moderation_failed unsuccessful policyViolation",
    "canceled": "canceled CANCELLED aborted terminated deleted cancelled_by_user preempted crashed",
}


@pytest.mark.parametrize(
    ("state", "word"), [(state, word) for state in WORDS for word in WORDS[state].split()]
)
def test_the_status_words_of_the_field_are_understood(state: str, word: str) -> None:
    with canned(json_answer(f'{{"id": "v1", "status": "{word}"}}')) as url:
        assert ask(url, lambda client: client.retrieve("v1")).state == state


@pytest.mark.parametrize("word", ["marinating", "not_ready", "ready_to_run_later", "not_completed"])
def test_a_status_without_meaning_is_named(word: str) -> None:
    with (
        canned(json_answer(f'{{"id": "v1", "status": "{word}"}}')) as url,
        pytest.raises(nodes.NodeAnsweredNonsense, match=f"no meaning here: {word}"),
    ):
        ask(url, lambda client: client.retrieve("v1"))


@pytest.mark.parametrize(
    ("body", "remote_id"),
    [
        ('{"id": 17, "status": "queued"}', "17"),
        ('{"id": "caf\u00e9 1/2%", "status": "queued"}', "caf\u00e9 1/2%"),
        ('{"request_id": "r1", "status": "queued"}', "r1"),
        ('{"name": "operations/77", "done": false}', "operations/77"),
        ('{"request_id": "trace", "output": {"task_id": "t9", "task_status": "PENDING"}}', "t9"),
        ('{"code": 0, "message": "ok", "data": {"task_id": "t8", "task_status": "submitted"}}', "t8"),
        ('{"status": "success", "data": {"id": "j1", "status": "processing"}}', "j1"),
        ('{"status": 200, "data": {"id": "k2"}}', "k2"),
        ('{"video": {"id": "k1", "status": "queued"}}', "k1"),
        ('\ufeff{"id": "v1", "status": "queued", "status": "queued", "x": NaN}', "v1"),
    ],
)
def test_the_id_of_a_new_job_is_found(body: str, remote_id: str) -> None:
    with canned(json_answer(body, "201 Created")) as url:
        job = ask(url, lambda client: client.submit(request()))
    assert (job.remote_id, job.finished) == (remote_id, False)


@pytest.mark.parametrize(
    ("status", "place"),
    [
        ("201 Created", "/v1/videos/job-5"),
        ("202 Accepted", "http://h/pod/v1/videos/job-5/?a=b"),
        ("204 No Content", "job-5"),
        ("303 See Other", "/v1/videos/job-5"),
    ],
)
def test_a_new_job_may_be_named_by_its_location_alone(status: str, place: str) -> None:
    with canned(json_answer("", status, f"Location: {place}\r\n")) as url:
        assert ask(url, lambda client: client.submit(request())).remote_id == "job-5"


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ('{"id": "v1", "data": {"status": "succeeded"}}', "completed"),
        ('{"status": "success", "data": {"id": "v1", "status": "processing"}}', "in_progress"),
        (
            '{"code": 0, "message": "SUCCEED", "data": {"task_id": "v1", "task_status": "running"}}',
            "in_progress",
        ),
        ('{"request_id": "other", "output": {"task_id": "v1", "task_status": "SUCCEEDED"}}', "completed"),
        ('{"request_id": "other", "status": "processing"}', "in_progress"),
        ('{"name": "v1", "done": true}', "completed"),
        ('{"id": "v1", "video": {"url": "https://a/b.mp4"}}', "completed"),
        ('{"id": "v1", "error": {"message": "nsfw"}}', "failed"),
    ],
)
def test_the_state_of_a_job_is_found_in_its_envelope_or_without_a_word_for_it(body: str, state: str) -> None:
    with canned(json_answer(body)) as url:
        assert ask(url, lambda client: client.retrieve("v1")).state == state


def test_a_job_that_is_still_to_come_may_say_so_by_its_status_of_http() -> None:
    with canned(json_answer('{"id": "v1"}', "202 Accepted")) as url:
        assert ask(url, lambda client: client.retrieve("v1")).state == "in_progress"


GONE = json_answer('{"detail": "Not Found"}', "404 Not Found")
QUEUED = json_answer('{"id": "v1", "status": "queued"}')


@pytest.mark.parametrize(
    "answers",
    [
        [json_answer("", "204 No Content"), json_answer('{"id": "v1", "status": "canceled"}')],
        [json_answer('{"ok": true}'), GONE],
        [
            json_answer('{"detail": "it has ended"}', "422 No"),
            json_answer('{"id": "v1", "status": "canceled"}'),
        ],
        [GONE, QUEUED, json_answer("", "204 No Content"), GONE],
        [GONE, QUEUED, json_answer('{"success": true}'), GONE],
    ],
    ids=["nothing", "ok, and forgotten", "refused, for it is over", "deleted", "deleted with a word"],
)
def test_a_server_need_not_answer_a_cancel_with_the_job(answers: list[bytes]) -> None:
    with canned(*answers) as url:
        stopped = ask(url, lambda client: client.cancel("v1"))
    assert stopped is not None
    assert stopped.state == "canceled"


def test_a_server_that_has_neither_cancel_nor_delete_and_says_404_is_not_to_blame() -> None:
    with canned(GONE, QUEUED, GONE) as url:
        assert ask(url, lambda client: client.cancel("v1")) is None


@pytest.mark.parametrize(
    ("names", "address"),
    [
        ('"url": "https://cdn.example.com/a.mp4?sig=b%2Fc"', "https://cdn.example.com/a.mp4?sig=b%2Fc"),
        ('"video_url": "/files/a.mp4"', "{root}/files/a.mp4"),
        ('"output": ["https://cdn.example.com/a.mp4"]', "https://cdn.example.com/a.mp4"),
        ('"metadata": {"url": "https://cdn.example.com/a.mp4"}', "https://cdn.example.com/a.mp4"),
        ('"result": {"videos": [{"url": "https://cdn.example.com/a.mp4"}]}', "https://cdn.example.com/a.mp4"),
        ('"videoUrl": "https://cdn.example.com/a.mp4"', "https://cdn.example.com/a.mp4"),
        ('"poster_link": "https://b/x.jpg", "download_link": "https://b/a.mp4"', "https://b/a.mp4"),
        (
            '"task_result": {"videos": [{"url": "https://b/a.mp4"}, {"url": "https://b/c.mp4"}]}',
            "https://b/a.mp4",
        ),
        ('"response": {"generatedVideos": [{"video": {"uri": "https://b/a.mp4"}}]}', "https://b/a.mp4"),
        ('"assets": {"video": "https://b/a.mp4"}', "https://b/a.mp4"),
        ('"cancel_url": "https://b/v1/cancel", "status_url": "https://b/v1"', None),
        ('"output": {"thumbnail": "https://cdn.example.com/a.jpg"}', None),
        ('"url": "file:///etc/passwd"', None),
        ('"url": "//cdn.example.com/a.mp4"', None),
        ('"output": {"output": {"output": {"output": {"url": "https://a"}}}}', None),
    ],
)
def test_the_address_of_a_file_is_found_in_a_jobs_record(names: str, address: str | None) -> None:
    with canned(json_answer(f'{{"id": "v1", "status": "completed", {names}}}')) as url:
        job = RemoteJob(state="completed", remote_id="v1")
        assert ask(url + "/pod", lambda client: client.file_url(job)) == (
            address and address.format(root=url)
        )


@pytest.mark.parametrize("size", [1000, 900_000, 50_000_000])
def test_a_compressed_answer_is_unpacked_and_does_not_unfold_without_end(size: int) -> None:
    data = gzip.compress(b'{"id": "v1", "status": "queued", "x": "' + b" " * size + b'"}')
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with canned(head + data) as url:
        if size < 1_000_000:
            assert ask(url, lambda client: client.retrieve("v1")).state == "queued"
            return
        with pytest.raises(nodes.NodeAnsweredNonsense, match="too long"):
            ask(url, lambda client: client.retrieve("v1"))


def test_a_compressed_file_that_breaks_off_is_fetched_anew(tmp_path: Path, quick_retries: None) -> None:
    clip = make_clip()
    data = gzip.compress(clip)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    seen: list[bytes] = []
    with canned(head + data[: len(data) // 2], head + data, seen=seen) as url:
        job = RemoteJob(state="completed", remote_id="v1")
        assert ask(url, lambda client: client.download(job, tmp_path / "clip.mp4")) == len(clip)
    assert (tmp_path / "clip.mp4").read_bytes() == clip
    assert not [asked for asked in seen if b"range:" in asked.lower()]


CLIP = make_clip()
JOB = RemoteJob(state="completed", remote_id="v1")


def raw(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def part(begin: int, end: int) -> bytes:
    return raw(CLIP[begin:end], "206 Partial Content", f"Content-Range: bytes {begin}-{end - 1}/{len(CLIP)}")


def headless(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    "answers",
    [
        [raw(CLIP, "200 OK", "Content-Type: application/json")],
        [part(0, len(CLIP))],
        [part(0, 1000), part(1000, len(CLIP))],
        [raw(headless(CLIP), "200 OK", "Content-Encoding: deflate")],
        [raw(zlib.compress(CLIP), "200 OK", "Content-Encoding: deflate")],
        [raw(b"", "202 Accepted")] * 8 + [raw(CLIP)],
        [raw(b"", "425 Too Early")] * 8 + [raw(CLIP)],
        [raw(b'{"url": "/files/a.mp4"}', "200 OK", "Content-Type: text/plain"), raw(CLIP)],
        [
            raw(b'{"detail": "no"}', "403 Forbidden"),
            raw(b'{"id": "v1", "status": "done", "url": "/a"}'),
            raw(CLIP),
        ],
    ],
    ids=[
        *("called JSON", "206 unasked", "in parts", "deflate without a head", "deflate", "202", "425"),
        *("JSON called text", "403, and elsewhere"),
    ],
)
def test_a_file_is_found_however_the_server_sends_it(
    answers: list[bytes], tmp_path: Path, quick_retries: None
) -> None:
    with canned(*answers) as url:
        assert ask(url, lambda client: client.download(JOB, tmp_path / "clip.mp4")) == len(CLIP)
    assert (tmp_path / "clip.mp4").read_bytes() == CLIP


def test_a_file_that_drips_holds_up_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read succeeds in time, and so would the download within its own."""
    monkeypatch.setattr("generation.nodes.download.READ_TIMEOUT", 0.5)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for byte in CLIP:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    async def run() -> None:
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
            endpoint = NodeEndpoint(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            async with open_client(endpoint) as client:
                await client.download(JOB, tmp_path / "clip.mp4", timeout=20)

    with pytest.raises(nodes.NodeTimeout, match="too slowly"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [("28.4", 28400), ("0", 0), ("1e9", None), ("1e308", None), ("1e999", None), ("-1", None), ('"2"', None)],
)
def test_a_clips_time_is_milliseconds_that_a_column_can_hold(seconds: str, milliseconds: int | None) -> None:
    with canned(json_answer(f'{{"id": "v1", "status": "completed", "inference_time_s": {seconds}}}')) as url:
        job = ask(url, lambda client: client.retrieve("v1"))
    assert (job.state, job.generation_ms) == ("completed", milliseconds)


def test_nothing_that_a_database_cannot_hold_comes_through() -> None:
    said = """{"status": "rea\\u0000dy", "backend": "x\\ud800y", "capacity": 1e9, "detail": {"a\\u0000": ["b\\u0000"]},
     "queue_depth": 1e12, "seconds_per_step": 1e999, "sizes": ["720x480", 5, "big"]}"""
    with canned(json_answer(said)) as url:
        health = ask(url, lambda client: client.health())
    assert (health.status, health.backend, health.capacity, health.sizes) == (
        "ready",
        "xy",
        256,
        ("720x480",),
    )
    assert health.seconds_per_step is None
    assert health.detail["detail"] == {"a": ["b"]}


def test_a_node_that_makes_clips_from_pictures_is_left_alone_and_says_why() -> None:
    """It would refuse every prompt; while it loads or fails, that is the news."""
    said = '{"status": "%s", "backend": "CogVideoX-5B-I2V", "takes_image": true}'
    seen = []
    for status in ("ready", "starting"):
        with canned(json_answer(said % status)) as url:
            health = ask(url, lambda client: client.health())
        seen.append((health.ready, health.status, health.detail.get("detail")))

    assert seen[0] == (
        False,
        "pictures only",
        "Its model makes videos from pictures; this service sends text.",
    )
    assert seen[1] == (False, "starting", None)


def test_a_prompt_that_cannot_be_sent_is_rejected_here(
    field_node: FieldNode, videos_server: VideosServer
) -> None:
    broken = request(prompt="lone \ud800 surrogate")
    with pytest.raises(nodes.NodeRejected, match="cannot be sent"):
        with_client(field(field_node), lambda client: client.generate(broken))
    with pytest.raises(nodes.NodeRejected, match="cannot be sent"):
        with_client(videos(videos_server), lambda client: client.submit(broken))


def test_a_nodes_words_are_cleaned_before_they_are_shown() -> None:
    said = "key k3y-s3cret \\u0000\\ud800 refused\\n" + "x" * 2000
    with (
        canned(json_answer('{"error": {"message": "' + said + '"}}', "400 Bad Request")) as url,
        pytest.raises(nodes.NodeRejected) as caught,
    ):
        ask(url, lambda client: client.retrieve("v1"))
    text = str(caught.value)
    assert text.startswith("key *** refused x")
    assert len(text) == 400
    text.encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 301 Moved\r\nLocation: //\r\nContent-Length: 0\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
def test_whatever_a_server_sends_is_a_node_error(answer: bytes, tmp_path: Path, quick_retries: None) -> None:
    for act in (
        lambda client: client.health(),
        lambda client: client.submit(request()),
        lambda client: client.cancel("v1"),
    ):
        with canned(answer) as url, pytest.raises(nodes.NodeError):
            ask(url, act)
    job = RemoteJob(state="completed", remote_id="v1")
    with canned(*[answer] * ATTEMPTS) as url, pytest.raises(nodes.NodeError):
        ask(url, lambda client: client.download(job, tmp_path / "clip.mp4"))
    assert list(tmp_path.iterdir()) == []


def test_a_slow_drip_does_not_outlast_the_deadline() -> None:
    """Each read succeeds in time; only the deadline of the whole call ends this."""

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async def run() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport = Transport(NodeEndpoint(base_url=f"http://127.0.0.1:{port}"))
        try:
            await transport.call("GET", "/", timeout=0.3)
        finally:
            await transport.aclose()
            server.close()

    with pytest.raises(nodes.NodeTimeout):
        asyncio.run(run())


@pytest.mark.parametrize(
    "said",
    [
        '{"detail": [{"loc": ["body", "model"], "msg": "Field required"}]}',
        '{"error": {"message": "Missing required parameter", "param": "model"}}',
        '{"error": "missing_model"}',
        '{"model": ["This field is required."]}',
    ],
)
def test_a_server_that_wants_its_model_named_may_say_so_in_any_shape(said: str) -> None:
    models = json_answer('{"data": [{"id": "wan"}]}')
    with canned(json_answer(said, "400 Bad Request"), models, QUEUED) as url:
        assert ask(url, lambda client: client.submit(request())).remote_id == "v1"


def test_a_server_that_wants_a_form_may_say_so_with_400() -> None:
    refusal = json_answer('{"error": "Content-Type must be multipart/form-data"}', "400 Bad Request")
    seen: list[bytes] = []
    with canned(refusal, QUEUED, seen=seen) as url:
        assert ask(url, lambda client: client.submit(request())).remote_id == "v1"
    assert b"content-type: multipart/form-data" in seen[1].lower()


@pytest.mark.parametrize(
    "said", ['{"status": "green", "model": "wan"}', '{"model": "wan"}', '"ok"', "[]", '{"status": 200}']
)
def test_a_health_of_another_shape_is_ready_where_the_models_answer(said: str) -> None:
    with canned(json_answer(said), json_answer('{"data": [{"id": "wan"}]}')) as url:
        assert ask(url, lambda client: client.health()).ready


# --- Addresses, keys, words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "",
        "node",
        "ftp://node",
        "file:///etc/passwd",
        "http://",
        "http://a:99999999",
        "http://[::1",
        "http://[",
        "/x",
    ],
)
def test_an_address_that_is_none_is_misconfigured(address: str) -> None:
    with pytest.raises(nodes.NodeMisconfigured, match="address"):
        open_client(NodeEndpoint(base_url=address))


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "nul\0", "a\x7f"])
def test_a_key_that_no_header_can_hold_is_misconfigured(key: str) -> None:
    with pytest.raises(nodes.NodeMisconfigured, match="key"):
        open_client(NodeEndpoint(base_url="http://127.0.0.1:1", api_key=key))


def test_a_key_outside_ascii_is_sent_as_utf8() -> None:
    seen: list[bytes] = []
    with canned(json_answer('{"status": "ready"}'), seen=seen) as url:
        assert ask(url, lambda client: client.health(), key="schlüssel").ready
    assert "x-api-key: schlüssel".encode() in seen[0].split(b"\r\n")


def test_a_prefix_and_a_query_in_the_address() -> None:
    seen: list[bytes] = []
    with canned(json_answer('{"status": "ready"}'), seen=seen) as url:
        ask(f"{url}/pod-7/?token=abc#top", lambda client: client.health())
    assert seen[0].startswith(b"GET /pod-7/health HTTP/1.1\r\n")


def test_a_key_is_not_in_what_python_prints_of_an_endpoint() -> None:
    assert "s3cret" not in repr(NodeEndpoint(base_url="http://node", api_key="s3cret"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 1),
        ("-3", 1),
        ("999999", 600),
        ("nan", 5),
        ("inf", 5),
        ("soon", 5),
        ("", 5),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 1),
        ("Fri, 31 Dec 2399 23:59:59 GMT", 600),
    ],
)
def test_retry_after_is_read_within_reason(value: str, seconds: float) -> None:
    assert retry_after(httpx.Headers({"Retry-After": value})) == seconds


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, nodes.NodeAnsweredNonsense),
        (400, nodes.NodeRejected),
        (401, nodes.NodeUnauthorized),
        (402, nodes.NodeRejected),
        (403, nodes.NodeUnauthorized),
        (404, nodes.RemoteJobLost),
        (405, nodes.NodeAnsweredNonsense),
        (408, nodes.NodeTimeout),
        (425, nodes.NodeBusy),
        (410, nodes.RemoteJobLost),
        (413, nodes.NodeRejected),
        (422, nodes.NodeRejected),
        (429, nodes.NodeBusy),
        (500, nodes.NodeServerError),
        (502, nodes.NodeServerError),
        (503, nodes.NodeServerError),
        (504, nodes.NodeServerError),
        (507, nodes.NodeServerError),
        (529, nodes.NodeServerError),
    ],
)
def test_each_status_is_one_kind_of_error(status: int, kind: type[nodes.NodeError]) -> None:
    error = error_for_status(Answer(status, httpx.Headers(), b""), detail="")
    assert type(error) is kind
    assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too long", "code": "x"}}', "too long"),
        (b'{"status": "error", "error": "queue full"}', "queue full"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body", "fps"], "msg": "must be positive"}]}', "fps: must be positive"),
        (b'{"detail": [5, {"msg": "odd"}]}', "5; odd"),
        (b'{"message": "no"}', "no"),
        (b'{"errors": [{"message": "no"}]}', "no"),
        (b'{"error": {"msg": "no"}}', "no"),
        (b'{"model": ["This field is required."]}', "model: This field is required."),
        (b'{"title": "Bad", "errors": {"model": ["is required"]}}', "model: is required"),
        (b'"no"', "no"),
        (b"<html>", ""),
        (b"[1]", ""),
        (b'{"error": null}', ""),
    ],
)
def test_a_nodes_words_are_found_in_any_usual_shape(body: bytes, words: str) -> None:
    assert message_of(Answer(400, httpx.Headers(), body)) == words


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/srv/out/clip_1.mp4", "clip_1.mp4"),
        ("C:\\videos\\clip.mp4", "clip.mp4"),
        ("clip.mp4", "clip.mp4"),
        ("../../etc/passwd", "passwd"),
    ],
)
def test_a_path_is_cut_down_to_its_name(path: str, name: str) -> None:
    assert protocol.file_name(path) == name


# --- Finding out the protocol ----------------------------------------------------------------------------------


def detect(url: str, key: str = "") -> str:
    return asyncio.run(nodes.detect_protocol(NodeEndpoint(base_url=url, api_key=key)))


def test_a_field_node_is_recognised(field_node: FieldNode) -> None:
    assert detect(field_node.url, KEY) == "generate_video"


def test_a_videos_server_is_recognised(videos_server: VideosServer) -> None:
    assert detect(videos_server.url, videos_server.key) == "videos"


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [('["videos", "generate_video"]', "videos"), ('["generate_video"]', "generate_video")],
)
def test_a_node_of_ours_says_what_it_speaks(protocols: str, expected: str) -> None:
    with canned(json_answer('{"status": "starting", "protocols": ' + protocols + "}")) as url:
        assert detect(url) == expected


def test_a_server_that_takes_only_posts_is_recognised_by_its_allow_header() -> None:
    refusal = json_answer("{}", "405 Method Not Allowed", "Allow: POST\r\n")
    with canned(json_answer("{}"), refusal) as url:
        assert detect(url) == "videos"


def test_a_web_site_is_never_ready_and_speaks_no_protocol() -> None:
    page = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: 6\r\n\r\n<html>"
    )
    with canned(page, page) as url, pytest.raises(nodes.NodeAnsweredNonsense, match="web page"):
        ask(url, lambda client: client.health())
    pages = [page] * (2 + len(nodes.CLIENTS))
    with canned(*pages) as url, pytest.raises(nodes.NodeAnsweredNonsense, match="Nothing at"):
        detect(url)
