"""Names, passwords and blocked words as they look, through the sign-up form and the API."""

import time
from typing import Any

import pytest
from django.test import Client

from accounts import api_keys
from accounts.models import User
from generation.jobs import submission
from generation.models import BlockedPrompt

pytestmark = pytest.mark.django_db

PASSWORD = "a long enough password"


def sign_up(name: str, password: str = PASSWORD) -> str:
    answer = Client().post("/accounts/signup/", {"username": name, "password1": password})
    return "" if answer.status_code == 302 else answer.content.decode()


@pytest.fixture(autouse=True)
def _any_number(settings: Any) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"sign_up": (0, 1)}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ada@example.org", "no email address"),
        ("@ada", "no email address"),
        ("pаypal", "one alphabet"),  # the second letter is Cyrillic
        ("adminα", "one alphabet"),
        ("admin", "own"),
        ("Admin", "own"),
        ("admin2", "own"),
        ("the_admin", "own"),
        ("adm1n", "own"),
        ("support-team", "own"),
        ("áḋmïn", "own"),
        ("tg_42", "own"),
        ("deleted_0a1b", "own"),
        ("grace", "exists"),
        ("gr4ce", "own"),
        ("videos", "own"),
    ],
)
def test_names_that_pass_for_others(staff: User, settings: Any, name: str, why: str) -> None:
    settings.SITE_URL = "https://videos.example.org"
    assert why in sign_up(name)


@pytest.mark.parametrize(
    "name", ["ada", "Ада", "supporter", "roots", "анна_2", "山田", "やまだ太郎", "josé", "administer"]
)
def test_names_that_people_have(staff: User, name: str) -> None:
    assert sign_up(name) == ""


@pytest.mark.parametrize(
    "password", ["        ", "aaaaaaaaaa", "Lovelacelovelace", "Lovelace lovelace", "abababab"]
)
def test_passwords_that_hide_nothing(password: str) -> None:
    assert "four different characters" in sign_up("lovelace", password)


BOMB = [
    "bomb",
    "BOMB",
    "b\u200bomb",
    "bo\u0301mb",
    "b\u0336o\u0336m\u0336b\u0336",
    "bоmb",  # Cyrillic о
    "ｂｏｍｂ",
    "𝐛𝐨𝐦𝐛",
    "b0mb",
    "b o m b",
    "b.o.m.b",
    "b-o-m-b",
    "b_o_m_b",
    "boooomb",
    "bo\u00admb",
    "🅱omb",
    "ⓑⓞⓜⓑ",
    "b\u115fomb",
    "\U0001f1e7\U0001f1f4\U0001f1f2\U0001f1e7",
    "a bomb!",
    "(bomb)",
]


@pytest.mark.parametrize("spelling", BOMB)
def test_a_blocked_word_in_disguise(user: User, spelling: str) -> None:
    BlockedPrompt.objects.create(text="bomb")
    BlockedPrompt.objects.create(kind="pattern", text=r"gr[ae]nade")
    headers = {"Authorization": f"Bearer {api_keys.issue(user=user)[1]}"}
    body = {"prompt": f"A red {spelling} in the sea"}
    answer = Client().post("/v1/videos", body, content_type="application/json", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_policy_violation")


@pytest.mark.parametrize("prompt", ["A grеnade", "a gránade", "GRENADE"])
def test_a_pattern_in_disguise(prompt: str) -> None:
    BlockedPrompt.objects.create(kind="pattern", text=r"gr[ae]nade")
    assert submission.matching(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "bob ombra",
        "a bombastic speech",
        "tom b. and bo",
        "A b, an o",
        "бомбить",
        "Scunthorpe",
        "Bob at sea, 1999",
        "бум",
    ],
)
def test_what_only_holds_the_letters_is_fine(prompt: str) -> None:
    for text in ("bomb", "cunt", "boob"):
        BlockedPrompt.objects.create(text=text)
    assert submission.matching(prompt) == []


@pytest.mark.parametrize("spelling", ["бомба", "БОМБА", "бoмбa", "б о м б а", "бо\u0301мба", "бомбааа"])
def test_a_blocked_word_of_another_script(spelling: str) -> None:
    BlockedPrompt.objects.create(text="Бомба")
    assert submission.matching(f"красная {spelling} в море")


def test_long_prompts_are_compared_in_no_time(settings: Any) -> None:
    BlockedPrompt.objects.bulk_create(BlockedPrompt(text=f"word number {n}") for n in range(200))
    begun = time.process_time()
    submission.matching("a b " * 25_000)
    assert time.process_time() - begun < 5  # quadratic, it would be minutes
