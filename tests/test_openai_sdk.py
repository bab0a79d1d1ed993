"""OpenAI's own Python SDK as a client: programs written for their Videos API work here by changing the base URL."""

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import av
import openai
import pytest
from django.db import connection
from pytest_django.live_server_helper import LiveServer

from accounts import api_keys
from accounts.models import User
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]

PROMPT = "A paper boat in the rain"


@pytest.fixture
def client(live_server: LiveServer, user: User, node: GpuNode, settings: Any) -> Iterator[openai.OpenAI]:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    with openai.OpenAI(
        base_url=f"{live_server.url}/v1", api_key=api_keys.issue(user=user)[1], max_retries=0
    ) as client:
        yield client


def job_of(video: Any) -> GenerationJob:
    return GenerationJob.objects.get(pk=video.id.removeprefix("video_"))


def test_a_video_from_prompt_to_file(
    client: openai.OpenAI, finish_job: Callable[[GenerationJob], GenerationJob]
) -> None:
    video = client.videos.create(prompt=PROMPT)
    assert (video.status, video.object, video.progress, video.model) == (
        "queued",
        "video",
        0,
        "CogVideoX-tiny",
    )
    finish_job(job_of(video))
    video = client.videos.retrieve(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
    poster = client.videos.download_content(video.id, variant="thumbnail").read()
    assert poster.startswith(b"\xff\xd8")


def test_what_their_types_do_not_know_goes_through_as_well(client: openai.OpenAI) -> None:
    video = client.videos.create(
        prompt=PROMPT,
        model="CogVideoX-tiny",
        seconds="6",  # type: ignore[arg-type]  # their lengths are others
        extra_body={"seed": 7, "negative_prompt": "blurry"},
    )
    assert (video.seconds, video.model_extra["seed"], video.model_extra["preset"]) == ("6", 7, "standard")


def test_polling_waits_for_the_end(client: openai.OpenAI, start_job: Callable[[GenerationJob], Any]) -> None:
    video = client.videos.create(prompt=PROMPT)
    attempt = start_job(job_of(video))

    def fail() -> None:
        try:
            lifecycle.attempt_failed(
                attempt_id=attempt.pk, token=attempt.pk, code="rejected", message="No boats today.", error="x"
            )
        finally:
            connection.close()

    ending = threading.Timer(0.3, fail)
    ending.start()
    video = client.videos.poll(video.id, poll_interval_ms=50)
    ending.join()
    assert video.status == "failed"
    assert video.error is not None
    assert (video.error.code, video.error.message) == ("rejected", "No boats today.")


def test_lists_are_read_page_by_page(client: openai.OpenAI, user: User) -> None:
    made = [
        submission.submit(user=user, prompt=f"video {number}", source="web").public_id for number in range(5)
    ]
    assert [video.id for video in client.videos.list(limit=2)] == made[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == made


def test_a_video_is_deleted_once(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt=PROMPT)
    with pytest.raises(openai.ConflictError):
        client.videos.delete(video.id)
    client.post(f"/videos/{video.id}/cancel", cast_to=object)
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_remix_remembers_its_origin(client: openai.OpenAI) -> None:
    original = client.videos.create(prompt=PROMPT)
    remix = client.videos.remix(original.id, prompt="At night")
    assert (remix.prompt, remix.remixed_from_video_id) == ("At night", original.id)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["CogVideoX-tiny"]
    assert client.models.retrieve("CogVideoX-tiny").object == "model"


def test_the_same_idempotency_key_is_the_same_video(client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "order-17"}
    first = client.videos.create(prompt=PROMPT, extra_headers=headers)
    assert client.videos.create(prompt=PROMPT, extra_headers=headers).id == first.id


def test_errors_are_the_exceptions_they_know(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt=PROMPT, model="sora-2")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    assert "On offer: CogVideoX-tiny." in refused.value.message
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").videos.list()
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt=PROMPT, input_reference=b"png")
    assert refused.value.param == "input_reference"


def test_the_sdk_sits_out_a_cooldown_by_itself(client: openai.OpenAI, settings: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 2
    first = client.videos.create(prompt=PROMPT)
    second = client.with_options(max_retries=2).videos.create(prompt="Another")
    assert second.id != first.id
