"""Weights from the hub: fetched by a node from a small hub that speaks the real one's protocol."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpu_node.engine import loading
from gpu_node.engine.errors import ModelUnavailable
from gpu_node.settings import EngineOptions
from tests.gpu_node import variants
from tests.gpu_node.client import Client
from tests.node_process import NodeProcess, free_port, wait_until

REPO, COMMIT = "example/CogVideoX-mine", "0123456789abcdef0123456789abcdef01234567"
PADDING = 60_000_000


class Hub(ThreadingHTTPServer):
    """One repository with one commit. The second half of `held` is sent once `go_on` is set."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.held, self.go_on = files, "", threading.Event()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)
        if path.startswith("example/closed/"):
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return
        listing = re.fullmatch(rf"api/models/{REPO}/tree/(\w+)", path)
        file = re.fullmatch(rf"{REPO}/resolve/(\w+)/(.+)", path)
        found = listing or file
        if found is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        if found[1] not in ("main", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        if listing is not None:
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in self.server.files.items()
            ]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
            return
        content = self.server.files.get(file[2]) if file is not None else None
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        self._send(200, content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2 if self.server.held and self.path.endswith(self.server.held) else 0
        self.wfile.write(body[:half])
        assert not half or self.server.go_on.wait(60)
        self.wfile.write(body[half:])


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = variants.save("CogVideoX-5B", tmp_path_factory.mktemp("hub"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(dict(files))
    yield hub
    hub.go_on.set()
    hub.shutdown()


def test_a_node_says_how_far_the_download_is_and_records_the_commit(hub: Hub, tmp_path: Path) -> None:
    hub.held = "scheduler/padding.safetensors"
    hub.files |= {
        hub.held: bytes(PADDING),
        "vae/diffusion_pytorch_model.bin": b"a pickle",
        "samples/a.mp4": b"-",
    }
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "GPU_NODE_MODEL": REPO,
        "GPU_NODE_DEVICE": "cpu",
    }
    with NodeProcess.start(tmp_path, env=env, until="starting", forked=False) as node:
        halfway = wait_until(lambda: node.health()["detail"], what="a report of the download")
        assert re.fullmatch(r"downloading 0\.\d of 0\.\d GB", halfway)
        assert node.health()["status"] == "starting"
        hub.go_on.set()

        health = node.wait_for("ready")
        client = Client(node)
        job = client.finish(client.create()["id"])

    assert health["detail"] is None
    assert job["status"] == "completed", job
    assert health["setup"]["revision"] == job["made_with"]["revision"] == COMMIT
    assert f"{REPO}/resolve/{COMMIT}/vae/diffusion_pytorch_model.safetensors" in hub.asked
    assert not [path for path in hub.asked if path.endswith((".bin", ".mp4"))]


@pytest.fixture
def pointed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)


@pytest.mark.usefixtures("pointed")
@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("example/absent", "", "The hub has no example/absent with model_index.json at main, or hides it."),
        (REPO, "v9", f"The hub has no {REPO} with model_index.json at v9"),
        ("example/closed", "", "accept the terms on its page"),
        ("no/such/name", "", "The hub has no no/such/name"),
    ],
)
def test_what_the_hub_refuses_is_final_and_said_plainly(model: str, revision: str, words: str) -> None:
    with pytest.raises(ModelUnavailable, match=re.escape(words)):
        loading.load(EngineOptions(model=model, revision=revision, device="cpu"))


@pytest.mark.usefixtures("pointed")
def test_a_repository_of_something_else_is_final_too(hub: Hub) -> None:
    del hub.files["model_index.json"]
    with pytest.raises(ModelUnavailable, match=r"with model_index\.json"):
        loading.load(EngineOptions(model=REPO, device="cpu"))


@pytest.mark.usefixtures("pointed")
def test_a_repository_without_its_weights_is_final_too(hub: Hub) -> None:
    del hub.files["transformer/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelUnavailable, match="the folder has no complete transformer"):
        loading.load(EngineOptions(model=REPO, device="cpu"))


def test_a_hub_that_does_not_answer_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    nothing = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        nothing + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nothing)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its own attempts
    with pytest.raises(OSError, match="connection"):
        loading.load(EngineOptions(model=REPO, device="cpu"))
