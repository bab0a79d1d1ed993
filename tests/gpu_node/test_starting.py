"""Starting the node, settings that it refuses, its health and figures, and its key."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from starlette.testclient import TestClient

from gpu_node.app import create_app
from gpu_node.settings import BadConfiguration, NodeSettings, backend_name, is_loopback, load_settings
from tests.gpu_node.client import Client
from tests.node_process import NodeProcess, free_port, node_environment, wait_until


def run_node(folder: Path, *, key: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a node that is expected to end by itself."""
    environment = node_environment(folder, port=free_port(), key=key) | env
    return subprocess.run(
        [sys.executable, "-m", "gpu_node"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_wrong_setting_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    result = run_node(tmp_path, GPU_NODE_HOST="0.0.0.0")

    assert result.returncode == 2
    assert result.stderr.startswith("gpu_node: VIDEO_API_KEY must be set to listen on 0.0.0.0")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"GPU_NODE_HOST": "::"}, "VIDEO_API_KEY must be set to listen on ::"),
        ({"GPU_NODE_HOST": "gpu.example"}, "VIDEO_API_KEY must be set to listen on gpu.example"),
        ({"GPU_NODE_PORT": "many"}, "GPU_NODE_PORT"),
        ({"GPU_NODE_PORT": "70000"}, "GPU_NODE_PORT"),
        ({"GPU_NODE_QUEUE_SIZE": "-1"}, "GPU_NODE_QUEUE_SIZE"),
        ({"GPU_NODE_RETENTION_HOURS": "0"}, "GPU_NODE_RETENTION_HOURS"),
        ({"GPU_NODE_MODEL": ""}, "GPU_NODE_MODEL"),
        ({"GPU_NODE_DEVICE": "tpu"}, "GPU_NODE_DEVICE"),
        ({"GPU_NODE_PROFILE": "best"}, "GPU_NODE_PROFILE"),
        (
            {"GPU_NODE_STEP_CACHE": "faster_cache"},
            "exact allows no GPU_NODE_QUANTIZATION, no GPU_NODE_STEP_CACHE and no lossy GPU_NODE_ATTENTION",
        ),
        ({"GPU_NODE_ATTENTION": "sage"}, "exact allows no GPU_NODE_QUANTIZATION"),
        ({"GPU_NODE_ATTENTION": "_flash_3_hub"}, "GPU_NODE_ATTENTION"),
        (
            {"GPU_NODE_MODEL": "5B", "GPU_NODE_DTYPE": "float16"},
            "float16 gives black frames with THUDM/CogVideoX-5b",
        ),
        ({"GPU_NODE_WARM_FRAMES": "17,many"}, "GPU_NODE_WARM_FRAMES"),
        ({"GPU_NODE_SAVE_DIR": "/dev/null/videos"}, "GPU_NODE_SAVE_DIR"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIDEO_API_KEY", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(BadConfiguration, match=re.escape(complaint)) as refused:
        load_settings()

    assert "\n" not in str(refused.value)


def test_a_port_that_is_taken_is_said_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run_node(tmp_path, GPU_NODE_PORT=str(port))

    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_settings_are_read_from_dotenv_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GPU_NODE_QUEUE_SIZE=minus one\nSECRET_KEY=the platform's\n")

    result = run_node(tmp_path)

    assert result.returncode == 2
    assert "GPU_NODE_QUEUE_SIZE" in result.stderr


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("a.b", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("THUDM/CogVideoX-5b", "CogVideoX-5B"),
        ("THUDM/CogVideoX-2b", "CogVideoX-2B"),
        ("zai-org/CogVideoX1.5-5B", "CogVideoX1.5-5B"),
        ("5b-i2v", "CogVideoX-5B-I2V"),
        ("/models/CogVideoX-5b/", "CogVideoX-5B"),
        ("tiny", "CogVideoX-tiny"),
        ("tiny-random", "CogVideoX-tiny-random"),
        ("/models/mine", "CogVideoX-mine"),
    ],
)
def test_the_backend_is_named_after_the_model(model: str, name: str) -> None:
    assert backend_name(model) == name


def test_the_http_process_never_imports_torch() -> None:
    code = "import sys, json, gpu_node.__main__; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    loaded = {name.partition(".")[0] for name in modules}
    assert "uvicorn" in loaded
    assert not loaded & {
        "torch",
        "diffusers",
        "transformers",
        "av",
        "numpy",
        "django",
        "generation",
        "accounts",
    }


@pytest.fixture(scope="module")
def spawned_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that started its worker in the product's own way, `python -m gpu_node.worker`."""
    with NodeProcess.start(tmp_path_factory.mktemp("spawned"), forked=False) as node:
        yield node


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
class TestSpawnedWorker:
    def test_the_running_http_process_never_loads_torch(self, spawned_node: NodeProcess) -> None:
        Client(spawned_node).make()

        assert "libtorch" not in Path(f"/proc/{spawned_node.pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{spawned_node.worker_pid()}/maps").read_text()

    def test_its_clips_are_those_of_the_forked_workers_of_other_tests(
        self, spawned_node: NodeProcess, client: Client
    ) -> None:
        assert Client(spawned_node).make() == client.make()

    def test_it_does_not_get_the_key(self, spawned_node: NodeProcess) -> None:
        assert b"node-key" not in Path(f"/proc/{spawned_node.worker_pid()}/environ").read_bytes()

    def test_what_it_compiles_is_kept_beside_the_models(self, spawned_node: NodeProcess) -> None:
        environment = Path(f"/proc/{spawned_node.worker_pid()}/environ").read_bytes().split(b"\0")

        kept = spawned_node.folder / "models" / "compiled"
        assert f"TORCHINDUCTOR_CACHE_DIR={kept}".encode() in environment


def test_health_tells_what_the_node_is(client: Client) -> None:
    client.make()

    health = client.node.health()

    assert health.pop("seconds_per_step") > 0
    assert health.pop("memory").keys() == {"total_mb", "free_mb", "peak_mb"}
    assert health.pop("free_disk_mb") > 0
    assert ("64x32", 9) in [(pace["size"], pace["frames"]) for pace in health.pop("paces")]
    assert health.pop("setup") == {
        "model": "tiny-random",
        "profile": "exact",
        "dtype": "float32",
        "attention": "native",
        "compiled": False,
        "quantization": "none",
        "step_cache": "none",
    }
    health.pop("idle_seconds")
    assert health == {
        "status": "ready",
        "reason": None,
        "detail": None,
        "backend": "CogVideoX-tiny-random",
        "model": "tiny-random",
        "profile": "exact",
        "device": "cpu",
        "queue_depth": 0,
        "running": 0,
        "capacity": 1,
        "queue_size": 2,
        "expected_wait_seconds": 0,
        "worker_restarts": 0,
        "protocols": ["videos", "generate_video"],
        "takes_image": False,
        "sizes": ["96x64"],
        "max_frames": 49,
        "max_steps": 1000,
    }


def test_the_pace_is_measured_at_start_up_before_any_clip(tmp_path: Path) -> None:
    with NodeProcess.start(tmp_path) as node:
        [pace] = node.health()["paces"]
    assert (pace["size"], pace["frames"]) == ("96x64", 17)
    assert pace["seconds_per_step"] > 0
    assert pace["seconds_besides"] > 0


def test_the_expected_wait_is_reckoned_from_measured_steps(client: Client) -> None:
    client.make()
    running = client.create_long()
    client.wait_for_step(running["id"])
    alone = client.node.health()["expected_wait_seconds"]
    client.create_long(seed=2)

    assert 0 < alone < client.node.health()["expected_wait_seconds"]


def test_metrics_are_for_prometheus_with_the_key(client: Client) -> None:
    client.make()
    client.cancel(client.create_long()["id"])
    assert requests.get(f"{client.node.url}/metrics", timeout=10).status_code == 401

    response = client.get("/metrics")

    assert response.headers["Content-Type"].startswith("text/plain")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert values["gpu_node_status", "ready"] == 1
    assert values["gpu_node_status", "starting"] == 0
    assert values["gpu_node_info", "exact", "tiny-random"] == 1
    assert values["gpu_node_jobs_total", "completed"] >= 1
    assert values["gpu_node_jobs_total", "canceled"] >= 1
    assert values["gpu_node_clip_seconds_total",] > 0
    assert values["gpu_node_step_seconds", "64x32", "9"] > 0
    assert values["gpu_node_disk_free_bytes",] > 0
    assert values["gpu_node_queue_depth",] == 0


def test_the_model_is_listed_as_openai_lists_models(client: Client) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny-random"]


class TestKey:
    PATHS = ("/v1/videos", "/v1/videos/x", "/get_video/x.mp4", "/nothing", "/health/", "//health")

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"x-api-key": "wrong"},
            {"x-api-key": ""},
            {"x-api-key": "schlüssel".encode()},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic node-key"},
            {"Authorization": "node-key"},
        ],
    )
    def test_without_the_right_key_everything_but_health_is_401(
        self, session_node: NodeProcess, path: str, headers: dict[str, str]
    ) -> None:
        assert requests.get(session_node.url + path, headers=headers, timeout=10).status_code == 401

    @pytest.mark.parametrize("headers", [{"x-api-key": "node-key"}, {"Authorization": "Bearer node-key"}])
    def test_the_key_is_taken_from_either_header(
        self, session_node: NodeProcess, headers: dict[str, str]
    ) -> None:
        assert requests.get(f"{session_node.url}/v1/videos", headers=headers, timeout=10).status_code == 200

    def test_a_refusal_has_the_shape_of_its_protocol(self, session_node: NodeProcess) -> None:
        field = requests.post(f"{session_node.url}/generate_video", json={"prompt": "x"}, timeout=10)
        videos = requests.post(f"{session_node.url}/v1/videos", json={"prompt": "x"}, timeout=10)

        assert (field.status_code, videos.status_code) == (401, 401)
        assert field.json()["status"] == "error"
        assert videos.json()["error"]["code"] == "invalid_api_key"
        assert videos.headers["WWW-Authenticate"] == "Bearer"

    def test_health_needs_no_key(self, session_node: NodeProcess) -> None:
        assert requests.get(f"{session_node.url}/health", timeout=10).status_code == 200

    def test_on_loopback_a_node_without_a_key_is_open(self, tmp_path: Path) -> None:
        open_node = TestClient(create_app(NodeSettings(save_dir=tmp_path, api_key=None)))

        assert open_node.get("/v1/videos").status_code == 200

    def test_a_key_may_have_any_letters(self, tmp_path: Path) -> None:
        node = TestClient(create_app(NodeSettings(save_dir=tmp_path, api_key=SecretStr("schlüssel"))))

        for key, status in (("schlüssel".encode(), 200), (b"schlussel", 401)):
            assert node.get("/v1/videos", headers={b"x-api-key": key}).status_code == status


def test_a_real_model_without_a_gpu_is_a_clear_failure(tmp_path: Path) -> None:
    env = {"GPU_NODE_MODEL": "THUDM/CogVideoX-5b", "CUDA_VISIBLE_DEVICES": ""}
    with NodeProcess.start(tmp_path, env=env, until="starting", forked=False) as node:
        client = Client(node)
        waiting = client.create()
        health = node.wait_for("failed")

        assert health["backend"] == "CogVideoX-5B"
        assert health["reason"].startswith("THUDM/CogVideoX-5b needs a CUDA GPU, and sees none")
        assert health["detail"] == health["reason"], "which the platform shows"
        assert client.finish(waiting["id"])["error"]["code"] == "model_unavailable"
        assert client.post("/v1/videos", json={"prompt": "x"}).status_code == 503
        assert client.post("/generate_video", json={"prompt": "x"}).json()["error"] == health["reason"]
        assert health["reason"] in node.log()
        wait_until(lambda: node.worker_pid() is None, what="the worker to end")
