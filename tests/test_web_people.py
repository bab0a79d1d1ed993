"""What people stumbled over: menus that were lost, retries that failed, keys that were made twice, words that were wrong."""

import re
from html import unescape

import pytest
from django.core.cache import cache
from django.test import Client
from django.utils import translation

from accounts import ledger, notices
from accounts.models import ApiKey, Notice
from generation import errors, sharing
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, Preset, Report

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
FROM_DASHBOARD = HTMX | {"HX-Current-URL": "http://testserver/"}


@pytest.fixture(autouse=True)
def _no_waiting(settings):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    cache.clear()


@pytest.fixture
def browser(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def submit(user):
    def make(prompt="A red fox", **options):
        return submission.submit(user=user, prompt=prompt, source="web", **options)

    return make


@pytest.fixture
def fail(start_job):
    """Bring a queued job to FAILED, as a node that reports a failure does."""

    def end(job):
        attempt = start_job(job)
        lifecycle.attempt_failed(
            attempt_id=attempt.pk, token=attempt.pk, code="x", message="It broke.", error=""
        )
        job.refresh_from_db()
        return job

    return end


def text(response):
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(words))


def page_of(job):
    return f"/videos/{job.public_id}/"


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_pages_about_errors_keep_the_menu(browser, staff, monkeypatch):
    missing = browser.get("/nowhere/")
    unreadable = browser.post("/videos/", {f"field-{number}": "" for number in range(1001)})
    assert (missing.status_code, unreadable.status_code) == (404, 400)
    monkeypatch.setattr("generation.jobs.catalog.quotes", lambda **_: 1 / 0)
    browser.raise_request_exception = False
    broken = browser.get("/")
    assert broken.status_code == 500
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = browser.cookies
    forbidden = strict.post("/videos/", {"prompt": "x"})
    early = browser.post("/videos/", b"x", content_type="text/plain; charset=punycode")
    assert "Sign in" not in text(early), "it is not known yet who asks"
    assert forbidden.status_code == 403
    for page in (missing, unreadable, broken, forbidden):
        html = page.content.decode()
        for path in ('href="/credits/"', 'href="/api-keys/"', 'href="/account/"', 'href="/accounts/logout/"'):
            assert path in html, page.status_code
        assert "500 credits" in text(page)
        assert "csrf" not in html


def test_a_visitors_error_page_leads_to_the_sign_in(client):
    assert 'href="/accounts/login/"' in client.get("/nowhere/").content.decode()


def test_a_menu_that_breaks_too_leaves_the_page_about_the_error(browser, monkeypatch):
    monkeypatch.setattr("generation.jobs.catalog.quotes", lambda **_: 1 / 0)
    monkeypatch.setattr("accounts.notices.unseen", lambda _: 1 / 0)
    monkeypatch.setattr("accounts.models.CreditAccount.balance", property(lambda _: 1 / 0))
    browser.raise_request_exception = False
    page = browser.get("/")
    assert page.status_code == 500
    assert "Something broke on our side" in text(page)


# --- Retry ------------------------------------------------------------------------------------------------------------


def test_retry_of_a_withdrawn_preset_makes_the_same_again(browser, submit, fail):
    job = fail(submit(preset=Preset.objects.get(name="standard")))
    Preset.objects.filter(name="standard").update(enabled=False)
    page = browser.post(f"{page_of(job)}retry/", follow=True)
    again = GenerationJob.objects.exclude(pk=job.pk).get()
    assert page.redirect_chain == [(page_of(again), 302)]
    assert (again.preset.name, again.num_frames, again.cost) == ("standard", 49, 250)
    refused = browser.post("/videos/", {"prompt": "new", "preset": "standard"})
    assert "There is no such preset" in text(refused), "a withdrawn preset is for retries only"


@pytest.mark.parametrize("headers", [{}, FROM_DASHBOARD], ids=["page", "gallery"])
def test_a_second_retry_of_what_was_retried_says_so(browser, submit, fail, headers):
    job = fail(submit())
    browser.post(f"{page_of(job)}retry/")
    again = fail(GenerationJob.objects.exclude(pk=job.pk).get())
    answer = browser.post(f"{page_of(job)}retry/", headers=headers)
    assert answer.headers.get("HX-Redirect", answer.headers.get("Location")) == page_of(again)
    assert "You tried this one again already" in text(browser.get(page_of(again)))
    assert GenerationJob.objects.count() == 2


# --- Words ------------------------------------------------------------------------------------------------------------

WAITS = [(1, "Please wait 1 second before"), (2, "Please wait 2 seconds before")]


@pytest.mark.parametrize(("seconds", "words"), WAITS)
def test_a_wait_is_counted_in_good_english(seconds, words):
    assert words in errors.CooldownActive(seconds=seconds).message


def test_one_of_a_thing_is_not_called_many(browser, user, staff, settings):
    settings.VIDEO_COST = 1
    Preset.objects.update(num_frames=1, num_inference_steps=1)
    ledger.adjust(user=user, amount=-500, reason="test", actor=staff)
    refusal = text(browser.post("/videos/", {"prompt": "A red fox"}))
    assert "You need 1 credit to generate a video. Your balance: 0 credits" in refusal
    front = text(Client().get("/"))
    assert "1 frame at 8 per second, 1 step. " in front
    notices.tell(user=user, kind=Notice.Kind.REFUND, credits=1, videos=1, reason="It broke")
    assert "We gave you back 1 credit for 1 video: It broke" in text(browser.get("/"))


def test_russian_counts_and_dates_as_russians_do(browser, user):
    with translation.override("ru"):
        for seconds, words in ((121, "2 минуты"), (300, "5 минут"), (21 * 60, "21 минута"), (7200, "2 часа")):
            assert errors.in_words(seconds) == words
    user.date_joined = user.date_joined.replace(year=2026, month=5, day=3)
    user.save()
    ledger.grant(user=user, amount=12_000, reason="gift")
    browser.post("/language/", {"language": "ru", "next": "/"})
    assert "3 мая 2026" in text(browser.get("/account/"))
    assert "+12\xa0000" in browser.get("/credits/").content.decode()
