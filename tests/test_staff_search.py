"""Search for jobs by words among thousands, and lists that take the same time whatever they show."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import User
from generation.models import GenerationJob, Preset
from tests.staff import page, signed_in

pytestmark = pytest.mark.django_db
JOBS = 3_000
PAGE = 50
COUNTED = 1_000


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


@pytest.fixture
def prompts(user: User) -> list[str]:
    """Three thousand jobs, the newest first: an eighth is red, one in 99 rare, only older ones are slow, or late."""
    texts = [
        f"A boat {number}"
        + " red" * (number % 8 == 0)
        + " rare" * (number % 99 == 0)
        + " slow" * (number >= 1_700)
        + " late" * (number >= 2_100)
        for number in range(JOBS)
    ]
    now, preset = timezone.now(), Preset.objects.earliest("pk")
    made = {"num_frames": 16, "fps": 8, "num_inference_steps": 20, "cost": 50}
    GenerationJob.objects.bulk_create(
        GenerationJob(
            user=user, prompt=text, preset=preset, created_at=now - timedelta(seconds=number), **made
        )
        for number, text in enumerate(texts)
    )
    return texts


class TestManyJobs:
    def test_a_search_shows_the_newest_first_page_by_page(self, admin: Client, prompts: list[str]) -> None:
        for words in ("boat", "red boat", "slow", "late", "slo re", "rare", "1234", "whale"):
            self.check(admin, prompts, words)

    def check(self, admin: Client, prompts: list[str], words: str) -> None:
        """All have them, some, old ones, only the oldest, only beginnings of them, few, one, none."""
        expected = [
            prompt
            for prompt in prompts
            if all(any(own.startswith(word) for own in prompt.split()) for word in words.split())
        ]
        pages = -(-len(expected[:COUNTED]) // PAGE)
        for number in {1, min(2, pages), pages} - {0}:
            with CaptureQueriesContext(connection) as made:
                answer = admin.get(page("generation_generationjob_changelist"), {"q": words, "p": number})
            shown = answer.context["cl"]
            assert shown.result_count == len(expected[:COUNTED])
            assert [job.prompt for job in shown.result_list] == expected[(number - 1) * PAGE : number * PAGE]
            assert len(made) < 20

    def test_filters_and_another_order_hold_for_a_search_too(self, admin: Client, prompts: list[str]) -> None:
        GenerationJob.objects.filter(prompt__contains=" red").update(source="api")
        red = [prompt for prompt in prompts if " red" in prompt]
        address = page("generation_generationjob_changelist")
        filtered = admin.get(address, {"q": "boat", "source__exact": "api"}).context["cl"]
        assert [job.prompt for job in filtered.result_list] == red[:PAGE]
        assert filtered.result_count == len(red)
        oldest_first = admin.get(address, {"q": "boat", "o": "8"}).context["cl"]
        assert [job.prompt for job in oldest_first.result_list] == prompts[:-51:-1]


class TestLists:
    def test_the_head_of_a_list_is_made_once_and_each_row_has_its_own_box(
        self, admin: Client, prompts: list[str]
    ) -> None:
        def shown(words: str) -> tuple[str, int]:
            answer = admin.get(page("generation_generationjob_changelist"), {"q": words})
            boxes = [each for each in answer.templates if str(each.name).startswith("django/forms/widgets/")]
            return answer.content.decode(), len(boxes)

        one, fifty = shown("1234"), shown("boat")
        assert one[1] == fifty[1], "what is the same in each row is not made for each row"
        for job in GenerationJob.objects.order_by("-created_at")[:PAGE]:
            assert fifty[0].count(f'name="_selected_action" value="{job.pk}"') == 1
        assert fifty[0].count('aria-label="Select record"') == PAGE
