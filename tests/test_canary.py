"""A clip outside of any job: a server that is no node of ours is asked gently, and not for ever; `check_gpu_node`."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command

from generation.jobs import canary
from generation.media import VideoFacts
from generation.models import GpuNode
from generation.nodes import NodeTimeout
from tests.clips import facts_of
from tests.field_node import FieldNode
from tests.videos_server import VideosServer


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[VideosServer]:
    with VideosServer.start(seconds=request.param) as running:
        yield running


def make(server: VideosServer, settings: Any, folder: Path) -> VideoFacts:
    settings.WORK_DIR = folder
    facts, _ = async_to_sync(canary.make_clip)(GpuNode(base_url=server.url), protocol="videos")
    return facts


@pytest.mark.parametrize("server", [1.0], indirect=True)
def test_a_server_that_answers_each_question_at_once_is_not_flooded(
    server: VideosServer, settings: Any, tmp_path: Path
) -> None:
    assert make(server, settings, tmp_path).frames == canary.FRAMES
    questions = [asked for asked in server.requests() if asked["path"].startswith("/v1/videos/video_gen_")]
    assert 2 <= len(questions) < 15


@pytest.mark.parametrize("server", [300.0], indirect=True)
def test_a_node_that_never_ends_it_is_given_up_as_a_job_would_be(
    server: VideosServer, settings: Any, tmp_path: Path
) -> None:
    settings.JOB_DEADLINE_SECONDS = 1
    with pytest.raises(NodeTimeout, match="within 1 s"):
        make(server, settings, tmp_path)
    assert any(asked["path"].endswith("/cancel") for asked in server.requests()), "it goes on for nobody"


@pytest.mark.django_db
def test_check_gpu_node_has_a_clip_made_and_keeps_it(settings: Any, tmp_path: Path) -> None:
    settings.WORK_DIR, said, kept = tmp_path / "work", io.StringIO(), tmp_path / "clip.mp4"
    with FieldNode.start() as field:
        GpuNode.objects.create(name="rack 1", base_url=field.url, api_key=field.key)
        call_command("check_gpu_node", generate="a red ball", output=kept, stdout=said)
        with pytest.raises(CommandError, match="Not usable: rack 1"):
            call_command(
                "check_gpu_node", generate="a red ball", output=tmp_path / "no" / "clip.mp4", stdout=said
            )
    assert "made 16 frames at 8 fps" in said.getvalue()
    assert facts_of(kept).frames == 16


@pytest.mark.django_db
def test_check_gpu_node_says_what_is_wrong(settings: Any) -> None:
    said = io.StringIO()
    with FieldNode.start() as field:
        GpuNode.objects.create(name="rack 1", base_url=field.url, api_key="another-key")
        GpuNode.objects.create(name="rack 2", base_url="http://127.0.0.1:9")
        with pytest.raises(CommandError, match="Not usable: rack 1, rack 2"):
            call_command("check_gpu_node", generate="a red ball", stdout=said)
    assert "does not accept the key" in said.getvalue()
    assert "No connection to the node" in said.getvalue()
