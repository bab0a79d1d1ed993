"""The gallery: pages, search, filters, deleting and retrying from a card."""

import json
import re
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.utils import timezone

from accounts import ledger
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, Preset
from telegram_bot.models import CreditPack, KnownBot, TelegramAccount

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
FROM_DASHBOARD = HTMX | {"HX-Current-URL": "http://testserver/?q=fox"}
FROM_VIDEO = HTMX | {"HX-Current-URL": "http://testserver/videos/video_x/"}


@pytest.fixture(autouse=True)
def _no_waiting(settings):
    settings.VIDEO_COOLDOWN_SECONDS = 0


@pytest.fixture
def add_rows(user):
    """Clips as rows alone, each a second older than the one before; numbered from 0."""
    preset = Preset.objects.get(name="quick")
    values = {"num_frames": 16, "fps": 8, "num_inference_steps": 20, "cost": 0, "preset": preset}

    def add(count, *, prompt="clip {n:02}", owner=user, source="web", state="failed"):
        now = timezone.now()
        jobs = GenerationJob.objects.bulk_create(
            GenerationJob(
                user=owner,
                prompt=prompt.format(n=n),
                source=source,
                state=state,
                finished_at=None if state in GenerationJob.LIVE else now,
                error_message="It broke.",
                **values,
            )
            for n in range(count)
        )
        for n, job in enumerate(jobs):
            GenerationJob.objects.filter(pk=job.pk).update(created_at=now - timedelta(seconds=n))
        return jobs

    return add


def multiply(job, count):
    """So many copies of a row, made by the database itself."""
    columns = [field.column for field in GenerationJob._meta.concrete_fields if not field.primary_key]
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO generation_generationjob (id, {names}) SELECT gen_random_uuid(), {names} "
            "FROM generation_generationjob, generate_series(1, %s) WHERE id = %s",
            [count, job.pk],
        )


def prompts(response):
    return [
        unescape(found)
        for found in re.findall(r'class="card-prompt"[^>]*>([^<]*)<', response.content.decode())
    ]


def older(response):
    """The address behind “Older videos”, or None."""
    found = re.search(r'rel="next" href="([^"]+)"', response.content.decode())
    return unescape(found[1]) if found else None


def page_of(job):
    return f"/videos/{job.public_id}/"


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_every_clip_is_reached_page_by_page_without_javascript(browser, add_rows):
    add_rows(60)
    address, seen = "/", []
    while address:
        page = browser.get(address)
        seen += prompts(page)
        address = older(page)
    assert seen == [f"clip {n:02}" for n in range(60)]


def test_scrolling_brings_the_next_cards_alone(browser, add_rows):
    add_rows(30)
    answer = browser.get(older(browser.get("/")), headers=HTMX)
    assert prompts(answer) == [f"clip {n:02}" for n in range(24, 30)]
    assert answer.content.decode().startswith("<article")
    assert older(answer) is None


def test_a_clip_that_comes_meanwhile_shifts_no_page(browser, add_rows, user):
    add_rows(30)
    address = older(browser.get("/"))
    submission.submit(user=user, prompt="new", source="web")
    assert prompts(browser.get(address))[0] == "clip 24"


def test_a_page_may_begin_behind_a_clip_that_was_deleted_meanwhile(browser, add_rows):
    jobs = add_rows(30)
    address = older(browser.get("/"))
    lifecycle.delete(job=jobs[23])
    assert prompts(browser.get(address))[0] == "clip 24"


@pytest.mark.parametrize("after", ["", "nonsense", "video_" + "0" * 32, "\0", "9" * 400])
def test_a_page_behind_no_clip_is_the_first_one(browser, add_rows, after):
    add_rows(2)
    assert prompts(browser.get("/", {"after": after})) == ["clip 00", "clip 01"]


def test_anothers_clip_is_no_cursor(browser, add_rows, make_user):
    foreign = add_rows(1, owner=make_user("bob"))[0]
    add_rows(2)
    assert len(prompts(browser.get("/", {"after": foreign.public_id}))) == 2


@pytest.mark.parametrize("count", [0, 10_000])
def test_the_dashboard_takes_at_most_eleven_queries(
    browser, user, add_rows, start_job, finish_job, django_assert_max_num_queries, count
):
    """With every kind of card on it, and more presets than are shipped."""
    for n in range(5):
        Preset.objects.create(name=f"extra-{n}", label=f"Extra {n}", position=10 + n, cost=5)
    if count:
        finish_job(submission.submit(user=user, prompt="done", source="web"))
        start_job(
            submission.submit(
                user=user, prompt="running", source="web", preset=Preset.objects.get(name="extra-0")
            )
        )
        multiply(add_rows(1)[0], count - 4)
        submission.submit(
            user=user, prompt="waiting", source="web", preset=Preset.objects.get(name="extra-1")
        )
    with django_assert_max_num_queries(11):
        page = browser.get("/")
    assert len(prompts(page)) == min(count, 24)
    assert GenerationJob.objects.count() == count
    with django_assert_max_num_queries(11):
        browser.get("/", {"q": "clip 00", "state": "failed", "door": "web"})


# --- Search and filters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fox", ["A red FOX in snow", "a fox and a hen"]),
        ("  snow fox ", ["A red FOX in snow"]),
        ("100%", ["100% wool_cap"]),
        ("%", ["100% wool_cap"]),
        ("_", ["100% wool_cap"]),
        ("лиса", ["Рыжая Лиса"]),
        ("<b>", []),
        ("'; DROP TABLE x; --", []),
        ("fox\0", ["A red FOX in snow", "a fox and a hen"]),
    ],
)
def test_a_search_finds_prompts_that_have_every_word(browser, add_rows, words, found):
    for prompt in ("A red FOX in snow", "a fox and a hen", "100% wool_cap", "Рыжая Лиса"):
        add_rows(1, prompt=prompt)
    page = browser.get("/", {"q": words})
    assert sorted(prompts(page)) == sorted(found)
    assert ("No video is like that" in page.content.decode()) == (not found)


def test_what_was_looked_for_stays_in_the_form(browser, add_rows):
    add_rows(1)
    html = browser.get("/", {"q": 'a "b" <c>', "state": "failed", "door": "api"}).content.decode()
    assert 'value="a &quot;b&quot; &lt;c&gt;"' in html
    assert '<option value="failed" selected>' in html
    assert '<option value="api" selected>' in html


@pytest.mark.parametrize(
    ("state", "found"),
    [("making", ["live"]), ("failed", ["broken"]), ("canceled", ["withdrawn"]), ("ready", [])],
)
def test_clips_are_filtered_by_state(browser, add_rows, state, found):
    add_rows(1, prompt="live", state="queued")
    add_rows(1, prompt="broken")
    add_rows(1, prompt="withdrawn", state="canceled")
    assert prompts(browser.get("/", {"state": state})) == found


def test_ready_clips_are_those_that_play(browser, user, finish_job, add_rows):
    add_rows(1)
    finish_job(submission.submit(user=user, prompt="done", source="web"))
    assert prompts(browser.get("/", {"state": "ready"})) == ["done"]


@pytest.mark.parametrize("door", ["web", "telegram", "api"])
def test_clips_are_filtered_by_source(browser, add_rows, door):
    for source in ("web", "telegram", "api"):
        add_rows(1, prompt=f"by {source}", source=source)
    assert prompts(browser.get("/", {"door": door})) == [f"by {door}"]


@pytest.mark.parametrize(
    "query", [{"state": "nonsense"}, {"door": "window"}, {"state": "ready;", "door": "\0"}]
)
def test_an_unknown_filter_is_none(browser, add_rows, query):
    add_rows(2)
    assert len(prompts(browser.get("/", query))) == 2


def test_older_clips_are_filtered_as_well(browser, add_rows):
    add_rows(30, prompt="fox {n:02}")
    add_rows(30, prompt="hen {n:02}")
    page = browser.get("/", {"q": "fox"})
    assert prompts(browser.get(older(page))) == [f"fox {n:02}" for n in range(24, 30)]


def test_htmx_gets_the_gallery_alone(browser, add_rows):
    add_rows(2)
    html = browser.get("/", {"q": "clip 01"}, headers=HTMX).content.decode()
    assert html.startswith('<div id="gallery" class="gallery" data-filtered>')
    assert html.count("<article") == 1
    assert browser.get("/", headers=HTMX).content.decode().startswith('<div id="gallery" class="gallery">')


def test_others_clips_are_not_found(browser, add_rows, make_user):
    add_rows(1, prompt="secret of Bob", owner=make_user("bob"))
    assert prompts(browser.get("/", {"q": "secret"})) == []


# --- Cards that do something ------------------------------------------------------------------------------------------


def test_a_card_is_deleted_after_a_question_in_place(browser, add_rows):
    job, _ = add_rows(2)
    question = browser.get(f"{page_of(job)}delete/", headers=HTMX).content.decode()
    assert "Delete this video?" in question
    assert "<html" not in question
    answer = browser.post(f"{page_of(job)}delete/", headers=FROM_DASHBOARD)
    assert json.loads(answer.headers["HX-Trigger"]) == {"deleted": {"job": job.id.hex}}
    assert "The video was deleted." in answer.content.decode()
    assert prompts(browser.get("/")) == ["clip 01"]


def test_with_the_last_card_the_first_visit_comes_back(browser, add_rows):
    job = add_rows(1)[0]
    answer = browser.post(f"{page_of(job)}delete/", headers=FROM_DASHBOARD)
    assert answer.headers["HX-Redirect"] == "/"
    page = browser.get("/").content.decode()
    assert "The video was deleted." in page
    assert page.count("data-sample=") == 3


def test_deleted_from_its_own_page_it_leads_back_to_the_gallery(browser, add_rows):
    job = add_rows(1)[0]
    answer = browser.post(f"{page_of(job)}delete/", headers=FROM_VIDEO)
    assert answer.headers["HX-Redirect"] == "/"


def test_trying_again_puts_the_new_card_first(browser, add_rows):
    job = add_rows(1)[0]
    answer = browser.post(f"{page_of(job)}retry/", headers=FROM_DASHBOARD)
    again = GenerationJob.objects.exclude(pk=job.pk).get()
    assert 'hx-swap-oob="afterbegin:#gallery"' in answer.content.decode()
    assert f'id="card-{again.id.hex}"' in answer.content.decode()
    assert "wallet" in answer.headers["HX-Trigger"]


def test_a_refused_retry_is_shown_in_the_gallery(browser, add_rows, user, staff):
    job = add_rows(1)[0]
    ledger.adjust(user=user, amount=-500, reason="test", actor=staff)
    answer = browser.post(f"{page_of(job)}retry/", headers=FROM_DASHBOARD).content.decode()
    assert answer.startswith('<div id="messages"')
    assert "Insufficient credits" in answer


def test_a_canceled_card_says_where_it_stopped_and_what_came_back(browser, user, start_job):
    job = submission.submit(user=user, prompt="fox", source="web", preset=Preset.objects.get(name="standard"))
    attempt = start_job(job)
    lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=23)
    lifecycle.cancel(job=job)
    card = browser.get(f"{page_of(job)}card/").content.decode()
    assert "The GPU is stopping." in card
    assert "data-live" in card
    lifecycle.attempt_stopped(attempt_id=attempt.pk, token=attempt.pk, stopped_at_step=24)
    card = browser.get(f"{page_of(job)}card/").content.decode()
    assert "It stopped at step 24 of 50." in card
    assert "250 credits released" in card
    assert "No credits were deducted." in card
    assert "data-live" not in card


# --- The composer looks ahead -----------------------------------------------------------------------------------------


def test_the_presets_say_length_quality_wait_and_price(browser, node):
    html = re.sub(r"<[^>]+>", "", browser.get("/").content.decode())
    assert re.search(r"Quick 50 credits 2 s · 20 steps · ~30 s wait", html)
    assert re.search(r"Standard 250 credits 6 s · 50 steps · ~4 min wait", html)


def test_the_expected_wait_counts_those_before(browser, node, add_rows, make_user):
    add_rows(3, owner=make_user("bob"), state="queued")
    assert "~2 min wait" in browser.get("/").content.decode()


def test_the_composer_says_when_no_gpu_is_ready(browser):
    html = browser.get("/").content.decode()
    assert "No GPU is ready just now: your video will wait in line." in html
    assert "data-no-gpu" in html


def test_the_composer_asks_no_more_when_a_gpu_is_ready(browser, node):
    assert "data-no-gpu" not in browser.get("/videos/ready/").content.decode()


def test_too_few_credits_lead_to_a_cheaper_preset_and_more_credits(browser, user, staff):
    ledger.adjust(user=user, amount=-400, reason="test", actor=staff)
    form = browser.get("/videos/ready/", {"preset": "standard"}).content.decode()
    assert "Not enough credits: this video costs 250 credits, you have 100." in form
    assert 'href="/credits/#more"' in form
    assert 'data-choose="quick"' in form


@pytest.mark.parametrize("address", ["https://shop.example.org/?a=1", "mailto:credits@example.org"])
def test_the_credits_page_leads_to_where_credits_are_offered(browser, user, settings, address):
    assert f"name your account: <b>{user.username}</b>" in browser.get("/credits/").content.decode()
    settings.CREDITS_URL = address
    assert f'href="{address}"' in browser.get("/credits/").content.decode()


def test_credits_that_are_for_sale_in_the_chat_are_led_to(browser, user, settings):
    settings.TELEGRAM_BOT_TOKEN = "4242:token"
    KnownBot.objects.create(bot_id=4242, username="clips_bot")
    assert "name your account" in browser.get("/credits/").content.decode(), "nothing is for sale yet"
    CreditPack.objects.update(for_sale=True)
    unconnected = browser.get("/credits/").content.decode()
    assert "Connect Telegram first" in unconnected
    assert "t.me/clips_bot" not in unconnected, "what is bought there would not be here"
    TelegramAccount.objects.create(telegram_id=42, user=user)
    connected = browser.get("/credits/").content.decode()
    assert 'href="https://t.me/clips_bot?start=buy_here"' in connected
    assert "name your account" not in connected


def test_the_sign_in_page_leads_to_the_bot_where_there_is_one(client, settings):
    assert "t.me" not in client.get("/accounts/login/").content.decode()
    settings.TELEGRAM_BOT_TOKEN = "4242:token"
    KnownBot.objects.create(bot_id=4242, username="clips_bot")
    page = client.get("/accounts/login/").content.decode()
    assert 'href="https://t.me/clips_bot?start=login_here"' in page
