"""Other people's `/v1/videos` servers as nodes of the running service: their ways cost neither a clip nor credits."""

import asyncio
import io
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from generation import errors, nodes
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode
from generation.nodes import GenerationRequest, NodeClient, NodeEndpoint, open_client, transport
from tests.clips import facts_of
from tests.other_servers import OtherServers, Routes
from tests.processes import Processes, wait_for

T = TypeVar("T")
KEY = "other-key"
# These make the clip, at the first attempt and of one post.
AT_ONCE = (
    *("fine", "page_once", "replica", "proxy_refusal", "conflict_once"),
    *("late_file", "early_file", "page_for_file", "broken_file", "cut_file"),
    *("unknown", "shouts", "prefixed", "long_id", "recoded_id", "quoted_id", "task_id"),
    *("health_page", "health_word", "health_shape", "health_missing"),
    *(
        "signed_path",
        "signed_redirect",
        "elsewhere",
        "elsewhere_redirect",
        "gzip",
        "content_json",
        "wrapped",
        "numbered",
    ),
)
# These make it, too: the number of attempts and of posts.
WITH_MORE = {"wants_model": (1, 2), "page_at_post": (1, 2), "expires": (2, 2)}
# These do not.
GIVEN_UP = ("forbids", "no_route", "forgets", "stops")


@pytest.fixture(scope="module")
def servers() -> Iterator[OtherServers]:
    with OtherServers() as running:
        yield running


def ask(url: str, act: Callable[[NodeClient], Awaitable[T]], **values: Any) -> T:
    async def run() -> T:
        endpoint = NodeEndpoint(base_url=url, api_key=KEY, **values)
        async with open_client(endpoint) as client:
            return await act(client)

    return asyncio.run(run())


REQUEST = GenerationRequest(id="attempt-1", prompt="a red ball")


# --- In the running service -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_each_way_of_a_server_is_understood_and_none_costs_a_clip(
    make_user: Callable[..., Any], processes: Processes, settings: Any
) -> None:
    """Each node has its own job, which names it by its model; all run at once."""
    with OtherServers() as servers:
        jobs = {}
        for name in [f"{way}-0" for way in (*AT_ONCE, *WITH_MORE, *GIVEN_UP)] + ["elsewhere-1"]:
            way, _, number = name.rpartition("-")
            GpuNode.objects.create(
                name=name,
                base_url=servers.url(way, int(number)) + "/v1",
                api_key=KEY,
                file_hosts="cdn.example.com localhost" if number == "0" else "",
            )
            user = make_user(name)
            jobs[name] = submission.submit(user=user, prompt="a red ball", source="api")
        for name, job in jobs.items():
            GenerationJob.objects.filter(pk=job.pk).update(model=name)
        processes.environment |= {
            "JOB_MAX_ATTEMPTS": "2",
            "DOWNLOAD_TIMEOUT_SECONDS": "60",
            "NODE_ANSWER_SECONDS": "5",
            "NODE_LOST_SECONDS": "12",
        }
        processes.start("run_worker")
        processes.start("run_reconciler")

        left = {"forbids-0", "no_route-0", "elsewhere-1"}

        def live() -> list[str]:
            ended = GenerationJob.objects.exclude(finished_at=None).values_list("model", flat=True)
            aside = GpuNode.objects.exclude(set_aside_at=None).values_list("name", flat=True)
            stopped = (
                {"stops-0"} if [1 for job in servers["stops"].jobs.values() if job.asked_to_stop] else set()
            )
            return sorted(jobs.keys() - set(ended) - (left & set(aside)) - stopped)

        wait_for(lambda: not live(), seconds=120, every=0.3, message="some are stuck")
        for way in AT_ONCE:
            check_completed(jobs[f"{way}-0"], attempts=1)
            assert servers[way].posts == 1, way
        for way, (attempts, posts) in WITH_MORE.items():
            check_completed(jobs[f"{way}-0"], attempts=attempts)
            assert servers[way].posts == posts, way
        assert servers["wants_model"].bodies[-1]["model"] == "wants_model-0"
        check_the_key_stays_with_the_node(servers)
        check_what_is_given_up(servers, jobs)
    call_command("audit_credits")


def check_completed(job: GenerationJob, *, attempts: int) -> None:
    job.refresh_from_db()
    assert job.state == "completed", (job.model, job.state, job.error_message)
    assert job.attempt_count == attempts, (job.model, list(job.attempts.values_list("error", flat=True)))
    assert lifecycle.receipt(job)["captured"] == job.cost
    facts = facts_of(Path(job.video.path))
    assert (facts.frames, facts.fps, facts.width, facts.height) == (job.num_frames, job.fps, 96, 64), (
        job.model
    )


def check_the_key_stays_with_the_node(servers: OtherServers) -> None:
    """A file on another host is fetched without the key; one of the node itself may need it."""
    for way, sent in (("elsewhere", ""), ("elsewhere_redirect", ""), ("signed_path", f"Bearer {KEY}")):
        machine = servers[way]
        keys = {
            key
            for asked, key in zip(machine.requests, machine.keys_seen, strict=True)
            if asked.startswith("GET /files/")
        }
        assert keys == {sent}, way


def check_what_is_given_up(servers: OtherServers, jobs: dict[str, GenerationJob]) -> None:
    """What is certain is not tried again: the node is set aside, and its job waits for another, or for the cure."""
    for job in jobs.values():
        job.refresh_from_db()
    assert (jobs["forbids-0"].state, jobs["forbids-0"].attempt_count) == ("queued", 0)
    assert servers["forbids"].prompts.count("a red ball") == 1, "later ones are canaries"
    assert "Your plan has no videos" in GpuNode.objects.get(name="forbids-0").set_aside_reason

    assert (jobs["no_route-0"].state, jobs["no_route-0"].attempt_count) == ("queued", 0)
    assert "The node has no /v1/videos." in GpuNode.objects.get(name="no_route-0").set_aside_reason

    assert (jobs["elsewhere-1"].state, jobs["elsewhere-1"].attempt_count) == ("queued", 1)
    assert servers.machine("elsewhere-1").prompts.count("a red ball") == 1
    reason = GpuNode.objects.get(name="elsewhere-1").set_aside_reason
    assert "localhost" in reason
    assert "file hosts" in reason

    assert (jobs["forgets-0"].state, jobs["forgets-0"].error_code) == ("failed", "node_lost")
    assert lifecycle.receipt(jobs["forgets-0"])["captured"] == 0
    assert [job.asked_to_stop for job in servers["forgets"].jobs.values()] == [True, True]


# --- What the client makes of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "words", "posts"),
    [
        ("refuses", "Extra inputs are not permitted", 2),
        ("wants_payment", "Insufficient balance", 1),
        ("misses_model", "The model does not exist", 1),
        ("refuses_with_200", "Insufficient balance", 1),
        ("wants_one_of_many", "model is required .*It lists wants_one_of_many-0, other", 1),
    ],
)
def test_a_refusal_is_one_in_the_servers_words(
    servers: OtherServers, way: str, words: str, posts: int
) -> None:
    with pytest.raises(nodes.NodeRejected, match=words):
        ask(servers.url(way), lambda client: client.submit(REQUEST))
    assert servers[way].posts == posts, "JSON, and where that is not understood a form"


@pytest.mark.parametrize(
    "end", ["", "/", "/v1", "/v1/", "/v1/videos", "/v1/models", "/health", "/v1?key=x#top"]
)
def test_an_address_may_end_in_a_route(servers: OtherServers, end: str) -> None:
    health = ask(servers.url("fine", 5) + end, lambda client: client.health())
    assert (health.ready, health.model) == (True, "fine-5")
    assert set(servers.requests("fine", 5)) == {"GET /health", "GET /v1/models"}


@pytest.mark.parametrize(
    "way", ["health_page", "health_word", "health_shape", "health_missing", "gzip", "fine"]
)
def test_a_server_is_ready_where_its_models_answer(servers: OtherServers, way: str) -> None:
    url = servers.url(way, 6)
    assert asyncio.run(nodes.detect_protocol(NodeEndpoint(base_url=url, api_key=KEY))) == "videos"
    health = ask(url, lambda client: client.health())
    assert (health.ready, health.status, health.model) == (
        True,
        "ready" if way not in ("gzip", "fine") else "ok",
        f"{way}-6",
    )


@pytest.mark.parametrize(
    "hosts", ["http://cdn.example.com", "cdn.example.com/x", "*", "*.com", "a..b", "a b/c"]
)
def test_what_is_no_host_is_none_that_staff_can_allow(hosts: str) -> None:
    node = GpuNode(name="n", base_url="http://127.0.0.1:9", file_hosts=hosts)
    with pytest.raises(ValidationError, match="no name of a host"):
        node.clean_fields()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def self_signed(
    servers: OtherServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of a server with a certificate of its own for `localhost`, and that certificate."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "node.pem", folder / "node.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    files = ["-keyout", key, "-out", certificate, "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Routes,), {"servers": servers}))
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}/fine-7", certificate
    server.shutdown()
    server.server_close()


@pytest.mark.django_db
def test_check_gpu_node_names_the_cure_of_a_self_signed_certificate_and_it_is_one(
    self_signed: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = self_signed
    GpuNode.objects.create(name="own", base_url=url)
    GpuNode.objects.create(name="name", base_url=url.replace("localhost", "127.0.0.1"))
    said = check()
    assert (
        "self-signed certificate: if the certificate is yours, add it to the file that SSL_CERT_FILE names"
        in said
    )

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    transport._tls_context.cache_clear()
    try:
        said = check()
    finally:
        transport._tls_context.cache_clear()
    assert "status ok, backend fine-7, speaks /videos" in said
    assert "its certificate does not hold: IP address mismatch" in said


def check(**options: Any) -> str:
    said = io.StringIO()
    with pytest.raises(CommandError):
        call_command("check_gpu_node", stdout=said, **options)
    return said.getvalue()


def test_a_name_and_a_port_without_a_server_are_told_apart_from_tls(servers: OtherServers) -> None:
    cases = {
        servers.url("fine").replace("http://", "https://"): "no TLS there",
        "http://no-such-host.invalid": "its name is not known here",
        "http://127.0.0.1:9": "refused: nothing listens",
    }
    for url, words in cases.items():
        with pytest.raises(nodes.NodeNotReached, match=words):
            ask(url, lambda client: client.health())


def test_a_file_of_certificates_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "certs.pem").write_text("no certificate")
    for name in ("certs.pem", "missing.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        transport._tls_context.cache_clear()
        with pytest.raises(nodes.NodeMisconfigured, match="SSL_CERT_FILE"):
            open_client(NodeEndpoint(base_url="https://node"))
    monkeypatch.delenv("SSL_CERT_FILE")
    transport._tls_context.cache_clear()


# --- check_gpu_node ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_check_gpu_node_names_the_cure(servers: OtherServers, settings: Any, tmp_path: Path) -> None:
    settings.WORK_DIR = tmp_path
    cures = {
        "refuses": "It has to take prompt, num_frames, fps and num_inference_steps",
        "wants_one_of_many": "if it listed exactly one, that would be named",
        "forbids": "Its key is set in the admin",
        "forgets": "If several machines share this address, enter each of them by its own",
        "moves": "It leads to https://elsewhere.example/: if that is the node, enter it as the address",
        "elsewhere": "if you trust it, add it to the file hosts of this node in the admin",
    }
    for way in cures:
        GpuNode.objects.create(name=way, base_url=servers.url(way, 8), api_key=KEY)
    GpuNode.objects.create(name="page", base_url=servers.url("fine", 8) + "/nowhere")
    GpuNode.objects.create(name="fine", base_url=servers.url("long_id", 8), file_hosts="localhost")
    said = check(generate="a red ball")
    for way, cure in (
        cures | {"page": "Enter the address up to /v1/videos or /generate_video, without it"}
    ).items():
        assert cure in said.partition(f"{way} at ")[2].partition(" at http")[0], (way, said)
    assert "made 16 frames at 8 fps" in said.partition("fine at ")[2]


def test_a_nodes_words_are_marked_as_its_own_and_lead_nowhere():
    said = "Pay at https://evil.example/pay or www.evil.example, " + "x" * 500
    words = errors.in_its_words(said)
    assert words.startswith("The GPU node says: “Pay at … or …")
    assert "evil" not in words
    assert len(words) < 230
