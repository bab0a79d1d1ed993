"""A clip outside of any job: a server that is no node of ours is asked gently, and not for ever."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from generation import trial
from generation.models import GpuNode
from generation.nodes import NodeTimeout
from tests.videos_server import VideosServer


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[VideosServer]:
    with VideosServer.start(seconds=request.param) as running:
        yield running


def make(server: VideosServer, settings: Any, folder: Path) -> trial.TrialClip:
    settings.WORK_DIR = folder
    return async_to_sync(trial.make_clip)(GpuNode(base_url=server.url), protocol="videos")


@pytest.mark.parametrize("server", [1.0], indirect=True)
def test_a_server_that_answers_each_question_at_once_is_not_flooded(
    server: VideosServer, settings: Any, tmp_path: Path
) -> None:
    assert make(server, settings, tmp_path).facts.frames == trial.FRAMES
    questions = [asked for asked in server.requests() if asked["path"].startswith("/v1/videos/video_gen_")]
    assert 2 <= len(questions) < 15


@pytest.mark.parametrize("server", [300.0], indirect=True)
def test_a_node_that_never_ends_it_is_given_up_as_a_job_would_be(
    server: VideosServer, settings: Any, tmp_path: Path
) -> None:
    settings.JOB_DEADLINE_SECONDS = 1
    with pytest.raises(NodeTimeout, match="within 1 s"):
        make(server, settings, tmp_path)
