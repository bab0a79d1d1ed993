"""What people stumbled over: lost menus, retries that failed, keys that were made twice, words that were wrong."""

import re
import time
from datetime import timedelta
from html import unescape
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.core.cache import cache
from django.test import Client
from django.utils import timezone, translation

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


def html(response):
    return response.content.decode()


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


# --- Pages that were missing something --------------------------------------------------------------------------------


def test_a_reload_makes_no_second_key(browser, user):
    form = {
        "name": "laptop",
        "key_id": re.search(r'name="key_id" value="([^"]+)"', html(browser.get("/api-keys/")))[1],
    }
    assert "Copy it now" in text(browser.post("/api-keys/", form))
    again = text(browser.post("/api-keys/", form))
    assert "This key was made already" in again
    assert "Copy it now" not in again
    assert ApiKey.objects.filter(user=user).count() == 1


def test_every_form_for_a_key_makes_one_of_its_own(browser, user):
    for _ in range(2):
        page = html(browser.get("/api-keys/"))
        key_id = re.search(r'name="key_id" value="([^"]+)"', page)[1]
        browser.post("/api-keys/", {"name": "laptop", "key_id": key_id})
    assert ApiKey.objects.filter(user=user).count() == 2


CONTACTS = [
    ("help@example.org", 'href="mailto:help@example.org"'),
    ("@clips_help", 'href="https://t.me/clips_help"'),
    ("https://example.org/help", 'href="https://example.org/help"'),
    ("Room 12, second floor", "Room 12, second floor"),
]


@pytest.mark.parametrize(("contact", "shown"), CONTACTS)
def test_every_page_leads_to_contact_terms_and_privacy(client, browser, settings, contact, shown):
    settings.SUPPORT_CONTACT = contact
    settings.TERMS_URL = "https://example.org/terms"
    settings.PRIVACY_URL = "https://example.org/privacy"
    for page in (client.get("/"), client.get("/accounts/signup/"), browser.get("/"), client.get("/nowhere/")):
        for link in (shown, 'href="https://example.org/terms"', 'href="https://example.org/privacy"'):
            assert link in html(page)


def test_where_the_operator_is_to_be_asked_the_way_is_shown(client, browser, settings):
    settings.SUPPORT_CONTACT = "help@example.org"
    for page in (client.get("/accounts/inactive/"), browser.get("/credits/")):
        assert html(page).count('href="mailto:help@example.org"') == 2, "at the foot, and in the text"


def test_without_pages_of_the_operator_there_are_our_own(client):
    assert 'href="/about/#terms"' in html(client.get("/"))
    page = text(client.get("/about/"))
    for words in ("A video that fails costs nothing.", "delete the account", "Contact"):
        assert words in page


def test_the_front_page_unfurls_in_chats(client, settings):
    settings.SITE_URL, settings.ALLOWED_HOSTS = "https://video.example.org", ["video.example.org"]
    page = html(client.get("/", headers={"Host": "video.example.org"}))
    tags = dict(re.findall(r'property="(og:[^"]+)" content="([^"]*)"', page))
    assert (tags["og:type"], tags["og:url"]) == ("website", "https://video.example.org/")
    assert "Text to video" in tags["og:title"]
    assert tags["og:description"]
    assert tags["og:image"].startswith("https://video.example.org/static/clips/")
    assert client.get(
        tags["og:image"].removeprefix("https://video.example.org"), headers={"Host": "video.example.org"}
    )


def test_the_report_page_has_a_style(client, submit, finish_job):
    token = sharing.share(job=finish_job(submit())).token
    page = html(client.get(f"/s/{token}/report/"))
    assert "account.css" in page
    assert 'class="panel stack"' in page
    assert "Thank you" in text(client.post(f"/s/{token}/report/", {"about": "other"}, follow=True))
    assert Report.objects.count() == 1


def test_no_page_uses_a_class_that_its_style_sheets_do_not_know(client, browser, submit, finish_job):
    """The pages that a person meets; a page without the sheet for its looks is one of these."""
    job = finish_job(submit())
    token = sharing.share(job=job).token
    sheets = {path.name: path.read_text() for path in Path(finders.find("base.css")).parent.glob("*.css")}
    paths = [
        "/",
        page_of(job),
        f"{page_of(job)}delete/",
        "/credits/",
        "/api-keys/",
        "/account/",
        "/account/delete/",
    ]
    public = ["/", "/about/", f"/s/{token}/", f"/s/{token}/report/", "/nowhere/", "/accounts/login/"]
    for visitor, path in [*((browser, path) for path in paths), *((client, path) for path in public)]:
        page = html(visitor.get(path))
        known = "".join(sheets[name] for name in re.findall(r'href="/static/(\w+\.css)"', page))
        used = {name for names in re.findall(r'class="([^"]*)"', page) for name in names.split()}
        assert not {name for name in used - HOOKS if f".{name}" not in known}, path


# Classes for scripts and tests, or for sheets that style them by their element.
HOOKS = {"messages", "info", "failure", "stage-column", "empty"}


def test_out_of_credits_the_button_leads_to_credits(browser, user, staff):
    assert re.search(r'<a class="button get-credits"[^>]* hidden>', html(browser.get("/")))
    ledger.adjust(user=user, amount=-480, reason="test", actor=staff)
    button = re.search(r'<a class="button get-credits"[^>]*>', html(browser.get("/")))[0]
    assert 'href="/credits/#more"' in button
    assert "hidden" not in button


def test_the_question_before_deleting_has_its_focus_on_the_harmless_answer(browser, submit):
    job = submit()
    lifecycle.cancel(job=job)
    for headers in ({}, FROM_DASHBOARD):
        page = html(browser.get(f"{page_of(job)}delete/", headers=headers))
        assert re.search(r"<a [^>]*data-close autofocus>Keep it</a>", page)
        assert "<button autofocus" not in page


# --- Waits and stages -------------------------------------------------------------------------------------------------


@pytest.fixture
def usual(user):
    """Clips of both presets took so long before: quick 20 s, standard 200 s."""
    for name, took in (("quick", 20_000), ("standard", 200_000)):
        job = submission.submit(user=user, prompt="old", source="api", preset=Preset.objects.get(name=name))
        GenerationJob.objects.filter(pk=job.pk).update(
            state="completed",
            video="a.mp4",
            finished_at=timezone.now(),
            generation_ms=took,
            deleted_at=timezone.now(),
        )


def ago(job, seconds, **values):
    started = timezone.now() - timedelta(seconds=seconds)
    GenerationJob.objects.filter(pk=job.pk).update(started_at=started, **values)


def wait_of(page, preset):
    return re.search(rf'<span id="wait-{preset}">(.*?)</span>', html(page))[1]


def test_the_waits_of_a_page_count_the_presets_that_run(browser, usual, submit, start_job, node):
    job = submit()
    start_job(job)
    ago(job, 10, step=10)
    page = browser.get("/")
    assert "about 11 s left" in text(page)
    assert wait_of(page, "quick") == "~31 s wait", "what runs is quick, and half done: 11 s"
    waiting = submit("next")
    page = browser.get("/")
    assert "about 31 s" in text(browser.get(page_of(waiting)))
    assert wait_of(page, "quick") == "~51 s wait"
    assert wait_of(page, "standard") == "~4 min wait"


def test_a_clip_that_no_node_can_make_is_promised_no_time(browser, submit, node):
    submit("any model will do")
    other = submit("another model", model="CogVideoX-5B")
    assert "2nd in line no GPU is ready just now" in text(browser.get(page_of(other)))


def test_a_clip_that_its_node_holds_back_counts_the_one_before(browser, usual, submit, start_job):
    first, second = submit("first"), submit("second")
    start_job(first)
    start_job(second)
    ago(first, 10, step=10)
    assert "next on the GPU · about 31 s" in text(browser.get(page_of(second)))
    assert "step 10 of 20" in text(browser.get(page_of(first)))


def test_decoding_has_a_name_and_a_share_of_the_bar(browser, usual, submit, start_job):
    job = submit()
    start_job(job)
    ago(job, 17, step=20)
    page = browser.get(page_of(job))
    assert "90 % all steps done, decoding the frames · about 2 s left" in text(page)
    assert '<progress max="100" value="90"' in html(page)
    ago(job, 26, step=20)
    page = text(browser.get(page_of(job)))
    assert "all steps done, decoding the frames" in page
    assert "about" not in page, "no number is better than one that stands still"


def test_the_time_counts_down_also_where_no_step_is_heard(browser, usual, submit, start_job, node):
    node.detected_protocol = "generate_video"
    node.save()
    job = submit()
    start_job(job)
    ago(job, 12)
    assert "being made on the GPU · about 8 s" in text(browser.get(page_of(job)))


def test_a_silent_gpu_is_named_and_so_is_the_move(browser, submit, start_job):
    job = submit()
    attempt = start_job(job)
    ids = {"attempt_id": attempt.pk, "token": attempt.pk}
    lifecycle.record_progress(**ids, step=5)
    lifecycle.note_silence(**ids, seconds=10)
    assert "the GPU does not answer; moving it unless it comes back" in text(browser.get(page_of(job)))
    lifecycle.record_progress(**ids, step=5)
    assert "step 5 of 20" in text(browser.get(page_of(job)))
    lifecycle.attempt_lost(**ids, error="silent")
    page = text(browser.get(page_of(job)))
    assert "1st in line The GPU was lost: another one makes it." in page


def test_open_pages_hear_of_a_silence_and_of_its_end(submit, start_job, monkeypatch):
    attempt = start_job(submit())
    ids = {"attempt_id": attempt.pk, "token": attempt.pk}
    told = []
    monkeypatch.setattr("generation.jobs.events.publish", told.append)
    lifecycle.note_silence(**ids, seconds=10)
    lifecycle.note_silence(**ids, seconds=10)
    assert len(told) == 1
    lifecycle.record_progress(**ids, step=0, after_silence=True)
    assert len(told) == 2


# --- Before and after -------------------------------------------------------------------------------------------------

PASSWORD = "a long enough password"


def sign_up(client):
    return client.post("/accounts/signup/", {"username": "newcomer", "password1": PASSWORD}, follow=True)


def test_the_front_pages_prompt_is_made_at_the_end_of_signing_up(client):
    assert client.post("/start/", {"prompt": "A red fox"}).url == "/accounts/signup/"
    page = sign_up(client)
    job = GenerationJob.objects.get()
    assert (job.prompt, job.user.username, job.source) == ("A red fox", "newcomer", "web")
    assert "<b>450</b>" in html(page)
    assert f'id="card-{job.id.hex}"' in html(page)
    client.get("/")
    assert GenerationJob.objects.count() == 1


def test_signing_in_instead_makes_it_too(client, user):
    client.post("/start/", {"prompt": "A red fox"})
    client.post("/accounts/login/", {"login": user.username, "password": PASSWORD}, follow=True)
    assert GenerationJob.objects.get().user == user


@pytest.mark.parametrize("headers", [{}, FROM_DASHBOARD], ids=["plain", "htmx"])
def test_a_prompt_that_is_sent_after_the_sign_in_has_ended_is_made_after_the_next(client, user, headers):
    form = {"prompt": "A red fox", "preset": "standard", "seed": "7", "key": "k"}
    answer = client.post("/videos/", form, headers=headers)
    to_sign_in = answer.headers.get("HX-Redirect", answer.headers.get("Location"))
    assert to_sign_in.startswith("/accounts/login/?next=%2F" if headers else "/accounts/login/?next=/")
    client.post("/accounts/login/", {"login": user.username, "password": PASSWORD}, follow=True)
    job = GenerationJob.objects.get()
    assert (job.prompt, job.preset.name, job.seed) == ("A red fox", "standard", 7)


def test_a_prompt_that_is_refused_after_signing_up_is_not_lost(client, settings):
    client.post("/start/", {"prompt": "x" * 201})
    page = sign_up(client)
    assert "Prompt too long. Maximum 200 characters." in text(page)
    assert "x" * 201 in html(page)
    assert not GenerationJob.objects.exists()


def test_a_prompt_of_long_ago_is_not_sent_by_itself(client, monkeypatch):
    client.post("/start/", {"prompt": "A red fox"})
    later = time.time() + 7200
    monkeypatch.setattr("generation.web.views.time.time", lambda: later)
    assert "A red fox</textarea>" in html(sign_up(client))
    assert not GenerationJob.objects.exists()


def test_a_link_from_elsewhere_orders_nothing(client, browser):
    """Such as “Make one like it” below a shared video, or one that another site has made."""
    assert "A red fox</textarea>" in html(browser.get("/start/", {"prompt": "A red fox"}, follow=True))
    strict = Client(enforce_csrf_checks=True)
    assert strict.post("/start/", {"prompt": "A red fox"}).status_code == 403
    assert not GenerationJob.objects.exists()
