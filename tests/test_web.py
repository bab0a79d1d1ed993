"""The site's pages, without JavaScript and in pieces for htmx."""

import gzip
import re
import uuid
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.core.cache import cache
from django.test import Client
from django.utils import timezone

from accounts import api_keys, ledger, merging
from accounts.models import ApiKey, CreditTransaction, User
from generation import privacy
from generation.jobs import lifecycle
from generation.models import GenerationJob, JobAttempt, Preset
from generation.web import presenters

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
PASSWORD = "a long enough password"
SITE = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _no_waiting(settings):
    """No cooldown unless a test asks for one, and no memory of how often the last test signed in."""
    settings.VIDEO_COOLDOWN_SECONDS = 0
    cache.clear()


def text(response):
    """Return the text of a page: without tags, white space collapsed."""
    words = re.sub(r"<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", unescape(words))


def hidden(response, name):
    return re.search(rf'name="{name}" value="([^"]*)"', response.content.decode())[1]


def page_of(job):
    return f"/videos/{job.public_id}/"


# --- Coming in --------------------------------------------------------------------------------------------------------


def test_a_visitor_sees_what_it_is_and_what_it_costs(client):
    page = text(client.get("/"))
    assert "50 credits" in page
    assert "250 credits" in page
    assert "500 credits on the house" in page


def test_a_visitor_sees_clips_that_this_service_made(client):
    page = client.get("/").content.decode()
    clips = re.findall(r'data-hover-video="/static/(clips/[^"]+)"', page)
    posters = re.findall(r'<img src="/static/(clips/[^"]+)"', page)
    assert len(clips) == len(posters) >= 3
    for name in (*clips, *posters):
        assert 0 < Path(finders.find(name)).stat().st_size < 100_000, name


def test_signing_up_gives_credits_and_the_composer(client):
    answer = client.post("/accounts/signup/", {"username": "newcomer", "password1": PASSWORD}, follow=True)
    assert answer.redirect_chain == [("/", 302)]
    assert "500 credits" in text(answer)
    assert "Generate · 50 credits" in text(answer)


def test_the_front_pages_prompt_survives_signing_up(client):
    to_signup = client.get("/start/", {"prompt": "Snow & <fire>"})
    form = client.get(to_signup.url)
    answer = client.post(
        "/accounts/signup/",
        {"username": "newcomer", "password1": PASSWORD, "next": form.context["redirect_field_value"]},
        follow=True,
    )
    assert "Snow &amp; &lt;fire&gt;</textarea>" in answer.content.decode()


def test_a_bad_sign_up_says_why_and_keeps_the_name(client, user):
    answer = client.post("/accounts/signup/", {"username": user.username, "password1": "123"})
    assert 'value="ada"' in answer.content.decode()
    assert "already exists" in text(answer)
    assert "too short" in text(answer)


@pytest.mark.parametrize("login", ["ada", "ada@example.org"])
def test_signing_in_works_by_name_and_by_email(client, make_user, login):
    make_user("ada", email="ada@example.org")
    answer = client.post("/accounts/login/", {"login": login, "password": PASSWORD}, follow=True)
    assert answer.context["user"].username == "ada"


def test_a_wrong_password_is_refused(client, user):
    answer = client.post("/accounts/login/", {"login": "ada", "password": "wrong"})
    assert "not correct" in text(answer)


def test_signing_out_takes_a_press_of_a_button(browser):
    browser.get("/accounts/logout/")
    assert "Generate" in text(browser.get("/"))
    browser.post("/accounts/logout/")
    assert "Sign in" in text(browser.get("/"))


def test_the_password_can_be_changed(browser, user):
    new = {"oldpassword": PASSWORD, "password1": "another long phrase", "password2": "another long phrase"}
    browser.post("/accounts/password/change/", new)
    assert Client().login(username=user.username, password="another long phrase")


def test_too_many_tries_get_a_page_of_ours(browser):
    tries = [browser.post("/accounts/password/change/", {"oldpassword": "guess"}) for _ in range(7)]
    assert tries[-1].status_code == 429
    assert "Too many tries" in text(tries[-1])


def test_forgotten_passwords_are_offered_only_where_mail_can_be_sent(client, settings):
    assert "Forgot your password" not in text(client.get("/accounts/login/"))
    settings.EMAIL_HOST = "mail.example.org"
    assert "Forgot your password" in text(client.get("/accounts/login/"))


def test_a_banned_person_is_signed_out(browser, user):
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert "Sign in" in text(browser.get("/"))


def test_pages_about_ones_own_things_ask_for_a_sign_in(client):
    for path in ("/credits/", "/api-keys/", f"/videos/video_{uuid.uuid4().hex}/"):
        assert client.get(path).url == f"/accounts/login/?next={path}"


def test_a_piece_of_a_page_sends_the_whole_browser_to_the_sign_in(client):
    answer = client.get("/balance/", headers=HTMX | {"HX-Current-URL": "http://testserver/?page=2"})
    assert answer.headers["HX-Redirect"] == "/accounts/login/?next=%2F%3Fpage%3D2"


# --- Submitting -------------------------------------------------------------------------------------------------------


def test_a_prompt_submitted_without_javascript_leads_to_a_page_that_reloads_itself(browser, user):
    answer = browser.post(
        "/videos/", {"prompt": "  A red fox ", "preset": "standard", "seed": "7"}, follow=True
    )
    job = GenerationJob.objects.get()
    assert (job.prompt, job.preset.name, job.seed, job.source) == ("A red fox", "standard", 7, "web")
    assert answer.redirect_chain == [(page_of(job), 302)]
    assert '<noscript><meta http-equiv="refresh"' in answer.content.decode()
    assert "250 credits" in text(browser.get("/"))
    assert "A red fox" in text(browser.get("/"))


def test_the_same_form_sent_twice_makes_one_clip(browser):
    form = {"key": hidden(browser.get("/"), "key"), "prompt": "A red fox"}
    pages = {browser.post("/videos/", form).url for _ in range(2)}
    assert len(pages) == 1
    assert GenerationJob.objects.count() == 1
    assert CreditTransaction.objects.filter(kind="reserve").count() == 1


def test_going_back_and_changing_the_prompt_makes_another_clip(browser):
    key = hidden(browser.get("/"), "key")
    for prompt in ("A red fox", "A blue fox"):
        browser.post("/videos/", {"key": key, "prompt": prompt})
    assert GenerationJob.objects.count() == 2


def test_every_rendering_of_the_form_has_a_key_of_its_own(browser):
    assert hidden(browser.get("/"), "key") != hidden(browser.get("/"), "key")


def test_line_ends_count_once_as_the_browsers_counter_does(browser, settings):
    browser.post("/videos/", {"prompt": "a\r\n" * 99 + "bc"})
    assert len(GenerationJob.objects.get().prompt) == 200


REFUSALS = [
    ({"prompt": ""}, "Please write what the video should show."),
    ({"prompt": "   "}, "Please write what the video should show."),
    ({"prompt": "x" * 201}, "Prompt too long. Maximum 200 characters."),
    ({"prompt": "a\x00b"}, "The prompt has characters that cannot be stored."),
    ({"prompt": "fox", "preset": "nonsense"}, "There is no such preset. On offer: quick, standard."),
    ({"prompt": "fox", "seed": "12three"}, "seed must be between 0 and 2147483647."),
    ({"prompt": "fox", "seed": "-1"}, "seed must be between 0 and 2147483647."),
    ({"prompt": "fox", "seed": "9" * 30}, "seed must be between 0 and 2147483647."),
    ({"prompt": "fox", "seed": "2147483648"}, "seed must be between 0 and 2147483647."),
    ({"prompt": "fox", "negative_prompt": "x" * 201}, "Negative prompt too long. Maximum 200 characters."),
]


@pytest.mark.parametrize("headers", [{}, HTMX], ids=["plain", "htmx"])
@pytest.mark.parametrize(("form", "message"), REFUSALS)
def test_a_refusal_says_why_keeps_what_was_typed_and_costs_nothing(browser, form, message, headers):
    answer = browser.post("/videos/", form, headers=headers)
    assert answer.status_code == 422
    assert message in text(answer)
    for value in (value for field, value in form.items() if field != "preset"):
        assert value in answer.content.decode()
    assert not GenerationJob.objects.exists()
    assert not CreditTransaction.objects.filter(kind="reserve").exists()


def test_two_mistakes_are_shown_at_once(browser):
    page = text(browser.post("/videos/", {"prompt": "", "seed": "x"}))
    assert "Please write what the video should show." in page
    assert "seed must be between" in page


def test_too_few_credits_are_refused_with_price_and_balance(browser, user, staff):
    ledger.adjust(user=user, amount=-480, reason="test", actor=staff)
    assert "Not enough credits: this video costs 50 credits, you have 20." in text(browser.get("/"))
    answer = browser.post("/videos/", {"prompt": "A red fox"})
    refusal = "Insufficient credits. You need 50 credits to generate a video. Your balance: 20 credits"
    assert refusal in text(answer)


def test_the_cooldown_is_counted_down_on_the_button(browser, settings, submit):
    settings.VIDEO_COOLDOWN_SECONDS = 60
    submit()
    page = browser.get("/")
    assert 0 < int(page.context["cooldown"]) <= 60
    assert f'data-cooldown="{page.context["cooldown"]}"' in page.content.decode()
    assert re.search(
        r"Please wait \d+ seconds before generating", text(browser.post("/videos/", {"prompt": "fox"}))
    )


def test_staff_see_that_it_is_free(staff):
    client = Client()
    client.force_login(staff)
    assert "Generate · free" in text(client.get("/"))


def test_no_preset_at_all_is_no_crash(browser):
    Preset.objects.update(enabled=False)
    assert browser.get("/").status_code == 200
    assert "No preset is enabled." in text(browser.post("/videos/", {"prompt": "fox"}))


def test_htmx_gets_a_fresh_composer_the_card_and_the_balance(browser):
    answer = browser.post("/videos/", {"prompt": "A red fox", "key": "k"}, headers=HTMX)
    html = answer.content.decode()
    job = GenerationJob.objects.get()
    assert html.startswith('<form id="composer"')
    assert "></textarea>" in html
    assert 'hx-swap-oob="afterbegin:#gallery"' in html
    assert f'id="card-{job.id.hex}"' in html
    assert "<b>450</b>" in html
    assert "<html" not in html


def test_a_link_fills_the_composer(browser):
    assert "Snow on a roof</textarea>" in browser.get("/", {"prompt": "Snow on a roof"}).content.decode()


def test_a_remix_brings_back_prompt_seed_and_preset_and_remembers_where_it_came_from(browser, submit):
    source = submit("A red fox", preset=Preset.objects.get(name="standard"), seed=77, negative_prompt="rain")
    page = browser.get("/", {"remix": source.public_id})
    html = page.content.decode()
    assert "A red fox</textarea>" in html
    assert 'value="77"' in html
    assert 'value="rain"' in html
    assert page.context["chosen"].preset.name == "standard"
    GenerationJob.objects.filter(pk=source.pk).update(model="CogVideoX-tiny", size="96x64")
    browser.post("/videos/", {"prompt": "A blue fox", "remix": hidden(page, "remix")})
    remix = GenerationJob.objects.get(prompt="A blue fox")
    assert (remix.remixed_from, remix.model, remix.size) == (source, "CogVideoX-tiny", "96x64")


def test_a_remix_of_nothing_is_no_page(browser, make_user, submit):
    foreign = submit(owner=make_user("bob"))
    for wanted in (foreign.public_id, "video_nonsense", f"video_{uuid.uuid4().hex}"):
        assert browser.get("/", {"remix": wanted}).status_code == 404


def test_a_remix_of_anothers_clip_leaves_no_trace_of_it(browser, user, make_user, submit):
    foreign = submit(owner=make_user("bob"))
    browser.post("/videos/", {"prompt": "mine", "remix": foreign.public_id})
    assert GenerationJob.objects.get(user=user).remixed_from is None


# --- Cards ------------------------------------------------------------------------------------------------------------


def test_a_waiting_clip_says_its_place_and_about_how_long(browser, submit, node):
    jobs = [submit(f"number {n}") for n in range(3)]
    assert "3rd in line about 90 s" in text(browser.get(page_of(jobs[2])))
    assert "1st in line about 30 s" in text(browser.get(page_of(jobs[0])))


def test_a_waiting_clip_says_when_no_gpu_is_ready(browser, submit):
    assert "1st in line no GPU is ready just now" in text(browser.get(page_of(submit())))


def test_a_running_clip_shows_true_steps_and_the_time_they_still_take(browser, submit, start_job):
    job = submit()
    attempt = start_job(job)
    assert "starting on the GPU · about 30 s" in text(browser.get("/"))
    lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=5)
    GenerationJob.objects.filter(pk=job.pk).update(started_at=timezone.now() - timezone.timedelta(seconds=5))
    page = browser.get("/")
    assert '<progress max="100" value="22"' in page.content.decode(), "a tenth of the bar is for decoding"
    assert re.search(r"step 5 of 20 · about 1[5-9] s left", text(page))


def test_a_clip_on_a_slow_gpu_is_judged_by_its_own_pace(submit, start_job):
    job = submit()
    start_job(job)
    job.refresh_from_db()
    job.step, job.started_at = 10, timezone.now() - timezone.timedelta(seconds=100)
    assert presenters.seconds_left(job, expected=30) == 100


def test_a_clip_that_waited_on_its_node_is_not_taken_for_slow(submit, start_job):
    job = submit()
    start_job(job)
    job.refresh_from_db()
    job.step, job.started_at = 2, timezone.now() - timezone.timedelta(seconds=33)
    assert presenters.seconds_left(job, expected=30) == 27


def test_a_clip_being_stored_can_no_longer_be_canceled(browser, submit, start_job):
    job = submit()
    attempt = start_job(job)
    lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    page = browser.get("/")
    assert "saving the video" in text(page)
    assert "/cancel/" not in page.content.decode()
    answer = browser.post(f"{page_of(job)}cancel/", follow=True)
    assert "This video can no longer be canceled: it is being stored." in text(answer)


def test_a_failed_clip_says_what_happened_that_it_was_free_and_offers_another_try(browser, submit, start_job):
    attempt = start_job(submit())
    lifecycle.attempt_failed(
        attempt_id=attempt.pk,
        token=attempt.pk,
        code="timed_out",
        message="Video generation timed out (>90s)",
        error="",
    )
    page = browser.get("/")
    assert "Video generation timed out (>90s). No credits were deducted." in text(page)
    assert "/retry/" in page.content.decode()


def test_nothing_deducted_is_not_shown_twice(browser, submit, start_job):
    attempt = start_job(submit())
    message = "Video generated but download failed. No credits were deducted. Please try again."
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, token=attempt.pk, code="download_failed", message=message, error=""
    )
    assert text(browser.get("/")).count("No credits were deducted") == 1


def test_cancel_gives_the_credits_back_at_once(browser, user, submit):
    job = submit()
    answer = browser.post(f"{page_of(job)}cancel/", follow=True)
    assert "Canceled. No credits were deducted." in text(answer)
    assert "<b>500</b>" in answer.content.decode()


def test_cancel_by_htmx_answers_with_the_card_and_asks_for_the_balance(browser, submit):
    job = submit()
    answer = browser.post(f"{page_of(job)}cancel/", headers=HTMX)
    assert (
        answer.content.decode().lstrip().startswith(f'<article id="card-{job.id.hex}" class="card canceled"')
    )
    assert "wallet" in answer.headers["HX-Trigger"]
    assert "<b>500</b>" in browser.get("/balance/").content.decode()
    assert 'data-balance="500"' in browser.get("/videos/ready/").content.decode()


def test_retry_makes_one_new_clip_however_often_it_is_pressed(browser, submit, start_job):
    job = submit("A red fox", seed=5, negative_prompt="rain")
    attempt = start_job(job)
    lifecycle.attempt_failed(attempt_id=attempt.pk, token=attempt.pk, code="x", message="It broke.", error="")
    GenerationJob.objects.filter(pk=job.pk).update(model="CogVideoX-tiny", size="96x64")
    first, second = (browser.post(f"{page_of(job)}retry/") for _ in range(2))
    again = GenerationJob.objects.exclude(pk=job.pk).get()
    assert first.url == second.url == page_of(again)
    assert (again.prompt, again.seed, again.negative_prompt) == ("A red fox", 5, "rain")
    assert (again.model, again.size) == ("CogVideoX-tiny", "96x64")


def test_a_refused_retry_says_why(browser, user, staff, submit):
    job = submit()
    lifecycle.cancel(job=job)
    ledger.adjust(user=user, amount=-500, reason="test", actor=staff)
    assert "Insufficient credits" in text(browser.post(f"{page_of(job)}retry/", follow=True))


def test_the_fragment_for_open_pages_is_the_card_of_the_page(submit):
    job = submit()
    html = presenters.render_card(job.pk, "en")
    assert html.startswith(f'<article id="card-{job.id.hex}"')
    assert "csrfmiddlewaretoken" not in html
    assert presenters.render_card(uuid.uuid4(), "en") == ""


def test_what_people_write_is_never_markup(browser, submit):
    job = submit('<script>alert("x")</script>', negative_prompt='"><img src=x>')
    for path in ("/", page_of(job), "/credits/", f"/?remix={job.public_id}"):
        html = browser.get(path).content.decode()
        assert "<script>alert" not in html
        assert "<img src=x>" not in html


# --- The gallery ------------------------------------------------------------------------------------------------------


def test_the_empty_gallery_offers_three_prompts(browser):
    assert browser.get("/").content.decode().count("data-sample=") == 3


def test_a_site_with_only_the_demonstration_model_says_so_and_offers_what_it_can_draw(browser, client, node):
    for page in (text(browser.get("/")), text(client.get("/"))):
        assert "small demonstration model" in page
    assert "A golden star flying right at night" in text(browser.get("/"))
    node.backend = "CogVideoX-5B"
    node.save()
    for page in (text(browser.get("/")), text(client.get("/"))):
        assert "demonstration model" not in page
    assert "A red fox trotting" in text(browser.get("/"))


# --- One clip ---------------------------------------------------------------------------------------------------------


def test_a_finished_clip_has_a_player_its_facts_and_a_receipt(browser, submit, finish_job):
    job = finish_job(submit("A red fox", seed=42))
    page = browser.get(page_of(job))
    player = re.search(r"<video[^>]*>", page.content.decode())[0]
    for attribute in (
        "playsinline",
        "muted",
        "controls",
        'preload="metadata"',
        f'poster="{page_of(job)}poster.jpg"',
    ):
        assert attribute in player
    words = text(page)
    for fact in ("Quick", "42", "16 at 8 per second", "96 × 64", "28.3 s", "2.0 s", "CogVideoX-tiny"):
        assert fact in words
    receipt = words[words.index("Balance before") :]
    assert re.search(r"Balance before 500 Reserved .*? −50 450 Charged .*? 50 450", receipt)


def test_the_receipt_stays_whole_when_two_accounts_of_one_person_are_joined(
    browser, user, make_user, submit, finish_job
):
    chat = make_user("chat")
    job = finish_job(submit(owner=chat))
    merging.merge(source=chat, target=user, reason="One person", actor=user)
    privacy.hand_over(source=chat, target=user)
    words = text(browser.get(page_of(job)))
    receipt = words[words.index("Balance before") :]
    assert re.search(r"Balance before 500 Reserved .*? −50 450 Charged .*? 50 450", receipt)


def test_the_file_can_be_played_from_the_middle_and_saved_under_a_name(browser, submit, finish_job, clip):
    job = finish_job(submit("A red fox"))
    part = browser.get(f"{page_of(job)}video.mp4", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.headers["Content-Range"] == f"bytes 100-199/{job.size_bytes}"
    assert b"".join(part) == clip.read_bytes()[100:200]
    saved = browser.get(f"{page_of(job)}video.mp4", {"download": "1"})
    assert saved.headers["Content-Disposition"] == 'attachment; filename="a-red-fox.mp4"'
    assert "private" in saved.headers["Cache-Control"]


def test_the_poster_is_a_picture(browser, submit, finish_job):
    poster = browser.get(f"{page_of(finish_job(submit()))}poster.jpg")
    assert poster.headers["Content-Type"] == "image/jpeg"
    assert b"".join(poster)[:2] == b"\xff\xd8"


def test_a_clip_that_is_not_ready_has_no_file(browser, submit):
    job = submit()
    assert browser.get(f"{page_of(job)}video.mp4").status_code == 404
    assert browser.get(f"{page_of(job)}poster.jpg").status_code == 404


def test_deleting_asks_first_and_is_for_good(browser, submit, finish_job):
    job = finish_job(submit())
    assert "Delete this video?" in text(browser.get(f"{page_of(job)}delete/"))
    assert browser.get(page_of(job)).status_code == 200
    assert "The video was deleted." in text(browser.post(f"{page_of(job)}delete/", follow=True))
    for path in ("", "video.mp4", "poster.jpg", "card/", "delete/"):
        assert browser.get(f"{page_of(job)}{path}").status_code == 404


def test_a_second_click_on_delete_says_the_same_as_the_first(browser, submit, finish_job):
    """Browsers drop the answer to the first click when the second one comes."""
    job = finish_job(submit())
    browser.post(f"{page_of(job)}delete/", headers=HTMX)
    browser.cookies.pop("messages", None)
    answer = browser.post(f"{page_of(job)}delete/", follow=True)
    assert answer.redirect_chain == [("/", 302)]
    assert "The video was deleted." in text(answer)


def test_a_live_clip_cannot_be_deleted(browser, submit):
    job = submit()
    answer = browser.post(f"{page_of(job)}delete/", follow=True)
    assert "This video is still being made: cancel it first." in text(answer)


OWNERS_ONLY = [("get", ""), ("get", "card/"), ("get", "video.mp4"), ("get", "poster.jpg"), ("get", "delete/")]
OWNERS_ONLY += [("post", "cancel/"), ("post", "retry/"), ("post", "delete/")]


@pytest.mark.parametrize(("method", "path"), OWNERS_ONLY)
def test_anothers_clip_is_as_unknown_as_none(browser, make_user, submit, finish_job, method, path):
    foreign = finish_job(submit(owner=make_user("bob")))
    theirs = getattr(browser, method)(f"{page_of(foreign)}{path}")
    missing = getattr(browser, method)(f"/videos/video_{uuid.uuid4().hex}/{path}")
    assert theirs.status_code == missing.status_code == 404
    assert theirs.content == missing.content


@pytest.mark.parametrize("path", ["cancel/", "retry/"])
def test_what_changes_something_is_not_done_by_following_a_link(browser, submit, path):
    job = submit()
    assert browser.get(f"{page_of(job)}{path}").status_code == 405


# --- Credits and keys -------------------------------------------------------------------------------------------------


def test_the_history_has_one_line_a_video_and_its_entries_on_demand(browser, submit, finish_job):
    finish_job(submit("A red fox"))
    canceled = submit("Never mind")
    lifecycle.cancel(job=canceled)
    submit("A hen")
    rows = re.findall(r"<tr>.*?</tr>", browser.get("/credits/").content.decode(), re.DOTALL)[1:]
    lines = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in rows]
    assert len(lines) == 4
    assert re.fullmatch(r".* A hen Held for a video −50 400", lines[0])
    assert re.fullmatch(
        r".* Never mind Canceled Details .* Held for a video · −50 .* Canceled · \+50 0 450", lines[1]
    )
    held = r"UTC · Held for a video · −50"
    charged = r".* UTC · Video completed: the 50 held credits were charged · 0"
    assert re.fullmatch(rf".* A red fox Video completed Details .* {held} {charged} −50 450", lines[2])
    assert re.fullmatch(r".* Welcome credits \+500 500", lines[3])
    assert "<details" in rows[2]
    assert "<details open" not in rows[2]


def test_one_canceled_video_is_not_several_in_russian(browser, submit):
    lifecycle.cancel(job=submit("Never mind"))
    page = browser.get("/credits/", HTTP_ACCEPT_LANGUAGE="ru").content.decode()
    assert "Отменено" in page
    assert "Отменены" not in page
    assert "Отменены" in browser.get("/", HTTP_ACCEPT_LANGUAGE="ru").content.decode()


def test_a_long_history_has_pages_that_miss_nothing(browser, user):
    for n in range(60):
        ledger.grant(user=user, amount=1, reason=f"gift {n:02}")
    first = browser.get("/credits/")
    older = re.search(r"\?before=\d+", first.content.decode())[0]
    gifts = re.findall(r"gift \d\d", text(first) + text(browser.get(f"/credits/{older}")))
    assert sorted(gifts) == [f"gift {n:02}" for n in range(60)]


def test_a_video_is_on_one_page_of_the_history_alone(browser, user, submit, finish_job):
    first = submit("The first of all")
    for n in range(60):
        ledger.grant(user=user, amount=1, reason=f"gift {n:02}")
    finish_job(first)
    newest = browser.get("/credits/")
    older = browser.get(f"/credits/{re.search(r'[?]before=[0-9]+', newest.content.decode())[0]}")
    assert text(newest).count("The first of all") == 1
    assert "The first of all" not in text(older)


def test_a_deleted_clip_stays_in_the_history_without_a_link(browser, submit, finish_job):
    job = finish_job(submit("A red fox"))
    lifecycle.delete(job=job)
    page = browser.get("/credits/")
    assert "A red fox (deleted)" in text(page)
    assert page_of(job) not in page.content.decode()


def test_the_history_is_ones_own(browser, make_user):
    ledger.grant(user=make_user("bob"), amount=5, reason="for Bob only")
    assert "for Bob only" not in text(browser.get("/credits/"))


def test_a_new_key_is_shown_once_and_works(browser, user):
    page = browser.post("/api-keys/", {"name": "laptop"})
    secret = re.search(r'id="secret" readonly value="([^"]+)"', page.content.decode())[1]
    assert api_keys.verify(secret).user == user
    assert "no-store" in page.headers["Cache-Control"]
    later = browser.get("/api-keys/").content.decode()
    assert "laptop" in later
    assert secret not in later


def test_a_key_needs_a_name(browser):
    answer = browser.post("/api-keys/", {"name": " "})
    assert answer.status_code == 422
    assert "Please name the key" in text(answer)
    assert not ApiKey.objects.exists()


def test_a_revoked_key_works_no_more(browser, user):
    key, secret = api_keys.issue(user=user, name="laptop")
    assert "was revoked" in text(browser.post(f"/api-keys/{key.pk}/revoke/", follow=True))
    assert api_keys.verify(secret) is None


def test_anothers_key_cannot_be_revoked(browser, make_user):
    key, secret = api_keys.issue(user=make_user("bob"))
    assert browser.post(f"/api-keys/{key.pk}/revoke/").status_code == 404
    assert api_keys.verify(secret)


# --- All pages --------------------------------------------------------------------------------------------------------


class Inline(HTMLParser):
    """Collects what the content security policy would block."""

    def __init__(self):
        super().__init__()
        self.found, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        handlers = [name for name in attributes if name.startswith("on") or name == "style"]
        data = attributes.get("type") == "application/json"
        if tag == "style" or (tag == "script" and "src" not in attributes and not data) or handlers:
            self.found.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []


def test_every_page_keeps_the_strict_policy_and_is_kept_by_no_cache(browser, submit, finish_job, user):
    job, waiting = finish_job(submit()), submit()
    api_keys.issue(user=user)
    paths = ["/", page_of(job), page_of(waiting), f"{page_of(job)}delete/", "/credits/", "/api-keys/"]
    paths += ["/accounts/password/change/", "/accounts/email/", "/accounts/logout/"]
    for path in paths:
        page = browser.get(path)
        inline = Inline()
        inline.feed(page.content.decode())
        assert page.status_code == 200, path
        assert not inline.found, path
        assert len(inline.ids) == len(set(inline.ids)), f"an id twice on {path}"
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        if not path.startswith("/accounts/"):
            assert "no-store" in page.headers["Cache-Control"], path


@pytest.mark.parametrize(
    "path", ["/", "/accounts/login/", "/accounts/signup/", "/accounts/password/reset/", "/nowhere/"]
)
def test_a_visitors_pages_keep_the_strict_policy(client, path):
    inline = Inline()
    inline.feed(client.get(path).content.decode())
    assert not inline.found


def test_every_form_is_protected_against_other_sites(user, submit):
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    job = submit()
    key, _ = api_keys.issue(user=user)
    paths = [
        "/videos/",
        f"{page_of(job)}cancel/",
        f"{page_of(job)}retry/",
        f"{page_of(job)}delete/",
        "/api-keys/",
    ]
    for path in [*paths, f"/api-keys/{key.pk}/revoke/", "/accounts/logout/", "/accounts/password/change/"]:
        answer = client.post(path, {"prompt": "x", "name": "x"})
        assert answer.status_code == 403, path
        assert "This form has expired" in text(answer)
    job.refresh_from_db()
    assert job.is_live


def test_a_missing_page_is_a_404_of_ours(client):
    answer = client.get("/nowhere/")
    assert answer.status_code == 404
    assert "There is no such page" in text(answer)


def test_a_fault_of_ours_is_a_page_of_ours(browser, monkeypatch):
    def broken(**_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("generation.jobs.catalog.quotes", broken)
    browser.raise_request_exception = False
    answer = browser.get("/")
    assert answer.status_code == 500
    assert "Something broke on our side" in text(answer)


def test_the_first_load_is_light(browser):
    page = browser.get("/").content.decode()
    assets = re.findall(r'(?:src|href)="/static/([^"]+\.(?:js|css|svg))"', page)
    assert len(assets) >= 5
    files = sum(len(gzip.compress(Path(finders.find(asset)).read_bytes())) for asset in assets)
    assert len(page.encode()) + files < 60_000


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG 2.2: from 1 to 21."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


TEXT_ON = [("text", ground) for ground in ("page", "surface", "sunken", "accent-soft")]
TEXT_ON += [("muted", ground) for ground in ("page", "surface", "sunken")]
TEXT_ON += [("accent", "page"), ("accent", "surface"), ("accent", "sunken"), ("accent-strong", "page")]
TEXT_ON += [("on-accent", "accent"), ("on-accent", "accent-strong"), ("on-danger", "danger")]
TEXT_ON += [("danger", "page"), ("danger", "surface"), ("danger", "sunken"), ("danger", "danger-soft")]
TEXT_ON += [("good", "page"), ("good", "good-soft")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(theme):
    sheet = (SITE / "videoplatform/static/base.css").read_text()
    themes = re.findall(r":root \{(.*?)\n *\}", sheet, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", themes[["light", "dark"].index(theme)]))
    colours = {name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in colours.items()}
    for words, ground in TEXT_ON:
        assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    assert contrast(colours["field-line"], colours["surface"]) >= 3
    assert contrast(colours["accent"], colours["sunken"]) >= 3, "the bar on its ground"


def test_nothing_comes_from_another_origin():
    for file in [*SITE.glob("templates/**/*.html"), *SITE.glob("videoplatform/static/*.[cjs]*")]:
        foreign = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?https?://[^\"')\s]+", file.read_text())
        assert not foreign, file


def test_attempts_are_not_needed_to_show_a_job(browser, submit, finish_job):
    """Old rows may point at an attempt that was cleaned up."""
    job = finish_job(submit())
    GenerationJob.objects.filter(pk=job.pk).update(current_attempt=None)
    JobAttempt.objects.filter(job=job).delete()
    assert browser.get(page_of(job)).status_code == 200
