"""The choice of language: by browser, cookie and account."""

import json
import re

import pytest
from django.test import Client

from accounts.models import User

pytestmark = pytest.mark.django_db

RUSSIAN_BROWSER = {"Accept-Language": "ru-RU,ru;q=0.9,en;q=0.8"}


def language_of(page):
    return re.search(r'<html lang="([^"]+)"', page.content.decode())[1]


def words_of(page):
    return re.search(r'src="(/words/[^"]+)"', page.content.decode())[1]


@pytest.mark.parametrize(
    ("accepted", "language"), [("ru-RU,ru;q=0.9", "ru"), ("de,ru;q=0.5", "ru"), ("de", "en"), ("", "en")]
)
def test_a_visitors_language_is_the_browsers(client, accepted, language):
    page = client.get("/", headers={"Accept-Language": accepted})
    assert language_of(page) == language
    assert ("Войти" in page.content.decode()) == (language == "ru")
    assert "Accept-Language" in page.headers["Vary"]


def test_the_switch_works_without_a_script_and_leads_back(client):
    answer = client.post("/language/", {"language": "ru", "next": "/accounts/login/?next=/credits/"})
    assert answer.url == "/accounts/login/?next=/credits/"
    assert language_of(client.get(answer.url)) == "ru"


def test_the_switch_leads_nowhere_else(client):
    for elsewhere in ("https://example.org/", "//example.org/", "http://[", "javascript:alert(1)"):
        assert client.post("/language/", {"language": "ru", "next": elsewhere}).url == "/"


def test_what_a_signed_in_person_chose_holds_on_every_machine(browser, user):
    browser.post("/language/", {"language": "ru", "next": "/"})
    elsewhere = Client()
    elsewhere.force_login(user)
    assert language_of(elsewhere.get("/", headers={"Accept-Language": "en"})) == "ru"


def test_an_unsupported_language_changes_nothing(browser, user):
    browser.post("/language/", {"language": "xx", "next": "/"})
    assert User.objects.get(pk=user.pk).language == ""
    assert language_of(browser.get("/")) == "en"


def test_the_api_and_the_admin_stay_english(client, staff):
    answer = client.get("/v1/videos", headers=RUSSIAN_BROWSER)
    assert answer.json()["error"]["message"].isascii()
    client.force_login(staff)
    assert language_of(client.get("/admin/", headers=RUSSIAN_BROWSER)) == "en"


def test_the_scripts_catalog_has_the_pages_language_and_is_cached(client):
    address = words_of(client.get("/", headers=RUSSIAN_BROWSER))
    answer = client.get(address)
    assert json.dumps("Ваше видео готово.") in answer.content.decode()
    assert "immutable" in answer.headers["Cache-Control"]
    assert words_of(client.get("/")) != address


def test_an_old_catalog_is_not_cached(client):
    answer = client.get("/words/ru-000000000000.js")
    assert answer.status_code == 200
    assert "Cache-Control" not in answer.headers
    assert client.get("/words/xx-000000000000.js").status_code == 404
