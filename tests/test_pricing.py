"""The quote before a submit: price and expected wait, measured on real clips."""

from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from generation.jobs import catalog, node_health, submission
from generation.models import GenerationJob, GpuNode, Preset
from generation.nodes import protocol

pytestmark = pytest.mark.django_db


def made(user: User, preset: str, *milliseconds: int | None) -> None:
    """Clips of the preset that took so long, oldest first."""
    for took in milliseconds:
        job = submission.submit(
            user=user, prompt="a red ball", source="api", preset=Preset.objects.get(name=preset)
        )
        GenerationJob.objects.filter(pk=job.pk).update(
            state="completed", video="a.mp4", finished_at=timezone.now(), generation_ms=took
        )


def test_the_wait_is_the_median_of_the_last_clips_of_that_preset(staff: Any) -> None:
    made(staff, "quick", *[90_000] * 5, *[20_000] * 9, *[30_000] * 10, 31_000, None)
    made(staff, "standard", 100_000)
    quotes = {quote.preset.name: quote.expected_seconds for quote in catalog.quotes()}
    assert quotes == {"quick": 30, "standard": 100}
    quick = Preset.objects.get(name="quick")
    assert catalog.expected_seconds_of([quick]) == {quick.pk: 30}


def test_without_clips_the_wait_is_the_setting_scaled_by_the_work(settings: Any) -> None:
    settings.VIDEO_EXPECTED_SECONDS = 32
    quick, standard = catalog.quotes()
    assert (quick.expected_seconds, standard.expected_seconds) == (32, round(32 * 49 * 50 / (16 * 20)))


def test_without_clips_the_wait_is_what_the_nodes_measured_when_they_started(node: Any) -> None:
    body = {
        "status": "ready",
        "paces": [
            {"size": "144x96", "frames": 17, "seconds_per_step": 0.5, "seconds_besides": 3.0},
            {"size": "144x96", "frames": 49, "seconds_per_step": 2.0, "seconds_besides": 6.0},
            {"frames": -1, "seconds_per_step": "fast"},
            None,
        ],
    }
    node_health.record_health(node, protocol.node_health(body, "videos"))
    quick, standard = catalog.quotes()
    assert (quick.expected_seconds, standard.expected_seconds) == (round(16 / 17 * 13), 106)
    GpuNode.objects.update(set_aside_at=timezone.now())
    assert catalog.quotes()[0].expected_seconds == 30, "a node that is set aside says nothing about waits"


def test_clips_made_with_other_settings_of_a_preset_count_by_their_work(staff: Any) -> None:
    made(staff, "quick", 20_000)
    Preset.objects.filter(name="quick").update(num_inference_steps=40)
    assert catalog.quotes()[0].expected_seconds == 40


def test_many_presets_cost_no_more_queries_than_one(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        catalog.quotes()
    for number in range(5):
        Preset.objects.create(name=f"more-{number}", label="More")
    with django_assert_num_queries(1):
        assert len(catalog.quotes()) == 7
