"""The account's pages: signing in and second steps, export, closing."""

import io
import json
import re
import zipfile

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value, yield_hotp_counters_from_time
from django.core import mail
from django.core.cache import cache
from django.core.files.storage import default_storage
from django.test import Client

from accounts import api_keys, merging, notices, privacy
from accounts.ledger_check import audit
from accounts.models import ApiKey, Ban, CreditTransaction, Notice, User, UserLimits
from accounts.models.ciphers import decrypted
from generation import privacy as video_privacy
from generation import sharing
from generation.jobs import lifecycle, stored_files, submission, tasks
from generation.models import GenerationJob, SharedLink
from telegram_bot.models import JobMessage, TelegramAccount
from tests.clips import FACTS, FILES
from tests.signing_in import signed_in

pytestmark = pytest.mark.django_db

PASSWORD = "a long enough password"


@pytest.fixture(autouse=True)
def _no_memory_of_tries(settings):
    settings.VIDEO_COOLDOWN_SECONDS = 0
    settings.EMAIL_HOST = "mail.example.org"
    cache.clear()


@pytest.fixture
def browser(user):
    client = Client()
    client.post("/accounts/login/", {"login": user.username, "password": PASSWORD})
    return client


@pytest.fixture
def submit(user):
    return lambda prompt="A red fox": submission.submit(user=user, prompt=prompt, source="web")


def link_in(message):
    return re.search(r"http://testserver(/\S+)", message.body)[1]


def code_for(user):
    secret = decrypted(Authenticator.objects.get(user=user, type="totp").data["secret"])
    return format_hotp_value(hotp_value(secret, next(iter(yield_hotp_counters_from_time()))))


# --- Email ------------------------------------------------------------------------------------------------------------


def test_an_address_is_added_and_confirmed_by_the_link_in_the_mail(browser, user):
    browser.post("/accounts/email/", {"email": "ada@example.org", "action_add": ""})
    assert "not confirmed yet" in browser.get("/account/").content.decode()
    assert mail.outbox[-1].to == ["ada@example.org"]
    browser.post(link_in(mail.outbox[-1]))
    assert EmailAddress.objects.get(user=user, verified=True).email == "ada@example.org"


def test_a_new_address_replaces_the_old_one_only_once_it_is_confirmed(browser, user):
    EmailAddress.objects.create(user=user, email="old@example.org", verified=True, primary=True)
    browser.post("/accounts/email/", {"email": "new@example.org", "action_add": ""})
    confirmation = next(message for message in mail.outbox if message.to == ["new@example.org"])
    assert "old@example.org" in browser.get("/account/").content.decode()
    browser.post(link_in(confirmation))
    assert [row.email for row in EmailAddress.objects.filter(user=user)] == ["new@example.org"]


def test_a_mail_server_that_is_away_breaks_nothing_and_is_reported(browser, settings):
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9
    answer = browser.post("/accounts/email/", {"email": "ada@example.org", "action_add": ""}, follow=True)
    assert answer.status_code == 200
    assert "could not be sent just now" in answer.content.decode()


def test_a_mail_is_in_the_language_of_the_page(browser):
    browser.post("/language/", {"language": "ru", "next": "/"})
    browser.post("/accounts/email/", {"email": "ada@example.org", "action_add": ""})
    assert re.search("[а-я]{4}", mail.outbox[-1].body)


# --- Second steps -----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_app(browser, user):
    """An authenticator app, set up as a person does it."""
    secret = browser.get("/accounts/2fa/totp/activate/").context["form"].secret
    code = format_hotp_value(hotp_value(secret, next(iter(yield_hotp_counters_from_time()))))
    browser.post("/accounts/2fa/totp/activate/", {"code": code})
    assert Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).exists()
    cache.clear()  # the code may be used again: the next half minute is too far away for a test
    return user


def test_with_an_app_the_password_alone_is_not_enough(with_app):
    visitor = Client()
    answer = visitor.post("/accounts/login/", {"login": with_app.username, "password": PASSWORD})
    assert answer.url == "/accounts/2fa/authenticate/"
    assert visitor.get("/account/").status_code == 302
    assert visitor.post("/accounts/2fa/authenticate/", {"code": "000000"}).status_code == 200
    visitor.post("/accounts/2fa/authenticate/", {"code": code_for(with_app)})
    assert visitor.get("/account/").status_code == 200


def test_a_recovery_code_works_once(with_app):
    codes = Authenticator.objects.get(user=with_app, type="recovery_codes").wrap().get_unused_codes()

    def sign_in():
        cache.clear()
        visitor = Client()
        visitor.post("/accounts/login/", {"login": with_app.username, "password": PASSWORD})
        visitor.post("/accounts/2fa/authenticate/", {"code": codes[0]})
        return visitor.get("/account/").status_code

    assert [sign_in(), sign_in()] == [200, 302]


def test_staff_without_the_right_cannot_take_a_second_step_away(with_app, make_user):
    url = f"/admin/mfa/authenticator/{Authenticator.objects.filter(user=with_app).first().pk}/delete/"
    helper = Client()
    helper.force_login(make_user("helper", is_staff=True))
    assert helper.post(url, {"post": "yes"}).status_code == 403
    helper.force_login(make_user("chief", is_staff=True, is_superuser=True))
    assert "please say why" in helper.post(url, {"post": "yes"}, follow=True).content.decode()
    assert Authenticator.objects.filter(user=with_app, type="totp").exists()
    assert helper.post(url, {"post": "yes", "reason": "Lost the phone"}).status_code == 302
    assert not Authenticator.objects.filter(user=with_app, type="totp").exists()


def test_other_sessions_are_ended_from_here(browser, user):
    elsewhere = Client(headers={"User-Agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/140.0"})
    elsewhere.post("/accounts/login/", {"login": user.username, "password": PASSWORD})
    assert "Firefox, Windows" in browser.get("/accounts/sessions/").content.decode()
    browser.post("/accounts/sessions/")
    assert elsewhere.get("/account/").status_code == 302
    assert browser.get("/account/").status_code == 200


# --- Taking one's data along ------------------------------------------------------------------------------------------


def exported(client):
    answer = client.post("/account/export/")
    return zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))


def test_the_export_has_the_videos_and_all_that_is_known(browser, user, submit, finish_job):
    job = finish_job(submit("A red fox"))
    lifecycle.cancel(job=submit("Never mind"))
    TelegramAccount.objects.create(telegram_id=42, user=user, username="ada_l")
    archive = exported(browser)
    data = json.loads(archive.read("data.json"))
    assert archive.testzip() is None
    assert data["account"]["username"] == "ada"
    assert data["account"]["credits"]["balance"] == 450
    assert data["account"]["credits"]["history"][0]["reason"] == "Welcome credits"
    assert [video["prompt"] for video in data["videos"]] == ["A red fox", "Never mind"]
    assert data["telegram"]["telegram_id"] == 42
    assert data["videos"][0]["links"] == []
    video, poster = data["videos"][0]["files"]
    assert archive.read(video) == default_storage.open(str(job.video)).read()
    assert archive.read(poster) == default_storage.open(str(job.poster)).read()
    assert data["videos"][1]["files"] == []


def test_the_export_has_limits_notices_links_and_joined_wallets(
    browser, user, make_user, staff, submit, finish_job
):
    link = sharing.share(job=finish_job(submit()))
    sharing.revoke(job=link.job)
    notices.tell(user=user, kind=Notice.Kind.REMOVAL, prompt="A red fox", reason="A real person")
    UserLimits.objects.create(user=user, daily_clips=3)
    Ban.objects.create(user=user, reason="Spam", by=staff)
    former = make_user("tg_42")
    merging.merge(source=former, target=user, actor=user, reason="Joined")
    account = json.loads(exported(browser).read("data.json"))["account"]
    videos = json.loads(exported(browser).read("data.json"))["videos"]
    assert account["notices"][0]["told"] == "Your video “A red fox” was removed: A real person"
    assert (account["limits"]["daily_clips"], account["ban"]["reason"]) == (3, "Spam")
    assert account["joined_wallets"][0]["history"][0]["reason"] == "Welcome credits"
    assert videos[0]["links"][0]["address"].endswith(f"/s/{link.token}/")
    assert videos[0]["links"][0]["revoked_at"]


def test_the_export_has_nothing_of_others(browser, make_user, submit):
    submission.submit(user=make_user("bob"), prompt="A secret of Bob", source="web")
    assert "Bob" not in exported(browser).read("data.json").decode()


def test_an_export_goes_on_without_a_file_that_was_just_deleted(browser, submit, finish_job):
    job = finish_job(submit())
    default_storage.delete(str(job.video))
    archive = exported(browser)
    assert [info.file_size for info in archive.infolist() if info.filename.endswith(".mp4")] == [0]


# --- Leaving ----------------------------------------------------------------------------------------------------------


def leave(client, proof="ada"):
    return client.post("/account/delete/", {"proof": proof})


def test_leaving_takes_the_user_name(browser, user):
    answer = leave(browser, "bob")
    assert answer.status_code == 422
    assert "That is not your user name." in answer.content.decode()
    assert User.objects.get(pk=user.pk).is_active
    assert leave(browser).status_code == 200
    assert User.objects.get(pk=user.pk).anonymised_at


def test_guessing_there_is_stopped(browser):
    assert [leave(browser, "guess").status_code for _ in range(12)][-1] == 429


def test_a_closed_account_cannot_sign_in_anywhere(browser, user):
    elsewhere = Client()
    elsewhere.force_login(user)
    EmailAddress.objects.create(user=user, email="ada@example.org", verified=True, primary=True)
    _, secret = api_keys.issue(user=user)
    TelegramAccount.objects.create(telegram_id=42, user=user)
    assert "deleted" in leave(browser).content.decode()
    for client in (browser, elsewhere):
        assert client.get("/account/").status_code == 302
    for login in ("ada", "ada@example.org"):
        assert not Client().login(username=login, password=PASSWORD)
    answer = Client().get("/v1/credits", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 401
    assert not ApiKey.objects.filter(user=user).exists()
    assert not TelegramAccount.objects.exists()
    assert not EmailAddress.objects.exists()


def test_the_videos_go_and_the_books_stay(browser, user, submit, finish_job):
    job = finish_job(submit("A red fox in my garden"))
    token = sharing.share(job=job).token
    live = submit("Never seen")
    JobMessage.objects.create(job=live, bot_id=1, chat_id=42)
    files = (str(job.video), str(job.poster))
    entries = CreditTransaction.objects.count()
    leave(browser)
    tasks.remove_files()
    assert not any(default_storage.exists(name) for name in files)
    assert Client().get(f"/s/{token}/").status_code == 404
    assert not SharedLink.objects.exists()
    assert not JobMessage.objects.exists()
    assert set(GenerationJob.objects.values_list("prompt", "state")) == {("", "completed"), ("", "canceled")}
    gone = User.objects.get(pk=user.pk)
    assert re.fullmatch("deleted_[0-9a-f]{12}", gone.username)
    assert (gone.email, gone.is_active, gone.has_usable_password()) == ("", False, False)
    assert CreditTransaction.objects.count() == entries + 1, "the hold of the live one was released"
    assert (gone.credit_account.balance, gone.credit_account.held) == (450, 0)
    assert audit().discrepancies == []


def test_a_video_that_was_just_being_stored_is_forgotten_later(browser, user, submit, start_job):
    job = submit()
    attempt = start_job(job)
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    leave(browser)
    stored_files.announce(FILES)
    assert lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)
    assert video_privacy.forget_closed_accounts() == 1
    job.refresh_from_db()
    assert job.deleted_at
    assert job.prompt == ""
    assert video_privacy.forget_closed_accounts() == 0


def test_the_last_superuser_stays(staff):
    client = signed_in(staff)
    answer = client.post("/account/delete/", {"proof": staff.username}, follow=True)
    assert "make another superuser first" in answer.content.decode()
    assert User.objects.get(pk=staff.pk).is_superuser


def test_leaving_twice_is_harmless(user):
    privacy.close(user=user)
    name = User.objects.get(pk=user.pk).username
    privacy.close(user=User.objects.get(pk=user.pk))
    assert User.objects.get(pk=user.pk).username != name
    assert audit().discrepancies == []


# --- The page itself --------------------------------------------------------------------------------------------------


def test_the_account_page_costs_few_queries(browser, user, django_assert_max_num_queries):
    for number in range(20):
        api_keys.issue(user=user, name=str(number))
    with django_assert_max_num_queries(12):
        page = browser.get("/account/").content.decode()
    assert "20 keys that work" in page


def test_telegram_is_offered_only_where_there_is_a_bot(browser, user, settings):
    assert "Telegram" not in browser.get("/account/").content.decode()
    settings.TELEGRAM_BOT_TOKEN = "1:a"
    assert "Not connected" in browser.get("/account/").content.decode()
    TelegramAccount.objects.create(telegram_id=42, user=user, username="ada_l")
    assert "Connected as @ada_l" in browser.get("/account/").content.decode()


def test_every_page_about_the_account_asks_for_a_sign_in(client):
    for path in (
        "/account/",
        "/account/delete/",
        "/accounts/2fa/",
        "/accounts/sessions/",
        "/accounts/email/",
    ):
        assert client.get(path).status_code == 302, path
    assert client.post("/account/export/").status_code == 302
