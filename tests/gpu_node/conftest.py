"""One node for all tests of a session."""

from collections.abc import Iterator

import pytest

from tests.gpu_node.client import LONG_STEPS, Client
from tests.node_process import NodeProcess

QUEUE_SIZE = 2


@pytest.fixture(scope="session")
def session_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    settings = {"GPU_NODE_QUEUE_SIZE": str(QUEUE_SIZE), "GPU_NODE_MAX_STEPS": str(LONG_STEPS)}
    folder = tmp_path_factory.mktemp("node")
    with NodeProcess.start(folder, env=settings) as node:
        yield node


@pytest.fixture
def gpu_node(session_node: NodeProcess) -> Iterator[NodeProcess]:
    """The shared node, idle before the test and idle after it."""
    session_node.wait_for("ready")
    yield session_node
    client = Client(session_node)
    for job in client.get("/v1/videos", params={"limit": 100}).json()["data"]:
        if job["status"] in ("queued", "in_progress"):
            client.cancel(job["id"])


@pytest.fixture
def client(gpu_node: NodeProcess) -> Client:
    return Client(gpu_node)
