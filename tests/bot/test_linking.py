"""One person in the chat and on the web: joining, parting, and signing in from the chat."""

import contextlib
import re
import threading
import uuid
from datetime import timedelta
from typing import Any

import pytest
from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret
from django.db import connection
from django.test import Client
from django.utils import timezone

from accounts import ledger, privacy
from accounts.ledger_check import audit
from accounts.models import User, WalletMerge
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob
from telegram_bot import linking, links
from telegram_bot.models import KnownBot, LinkRequest, LoginLink, TelegramAccount
from telegram_bot.users import open_account
from tests.bot.bot_process import GROUP, Bot, inbox_is_empty, labels, link_below, people
from tests.bot_api_server import Message, PressOfButton
from tests.processes import wait_for
from tests.signing_in import signed_in


@pytest.fixture(autouse=True)
def _site(settings: Any, bot: Bot) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    settings.SITE_URL = "https://videos.example.org"
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    KnownBot.objects.update_or_create(bot_id=bot.telegram.bot_id, defaults={"username": "videos_test_bot"})


@pytest.fixture
def web(make_user: Any) -> User:
    return make_user("web_ada")


@pytest.fixture
def browser(web: User) -> Client:
    return signed_in(web)


def account_of(telegram_id: int) -> TelegramAccount:
    return TelegramAccount.objects.select_related("user", "former_user").get(telegram_id=telegram_id)


def balance(user: User) -> int:
    user.credit_account.refresh_from_db()
    return user.credit_account.balance


def begin_on_web(browser: Client) -> str:
    """The command that Telegram sends when Start is pressed behind the link."""
    page = browser.post("/telegram/connect/").content.decode()
    return "/start " + re.search(r"https://t\.me/videos_test_bot\?start=(link_[\w-]{32})", page)[1]


def last(bot: Bot, chat: int) -> Message:
    return bot.telegram.shown(chat)[-1]


def ask(bot: Bot, text: str, sender: int, **facts: Any) -> Message:
    before = len(bot.telegram.shown(sender))
    bot.telegram.say(text, sender=sender, **facts)
    return bot.next_message(sender, after=before)


def press(bot: Bot, message: Message, label: str) -> PressOfButton:
    """The person whose chat it is presses."""
    return bot.telegram.press(message, label, sender=message.chat_id)


def refusal_of(bot: Bot, pressed: PressOfButton) -> str:
    """The words over the chat that a press was answered with."""
    wait_for(lambda: pressed.words is not None, message=bot.log)
    return str(pressed.words)


# --- Begun on the web -----------------------------------------------------------------------------------------------


def test_begun_on_the_web_agreed_in_the_chat_and_confirmed_on_the_web(bot, ada, browser, web, finish_job):
    ask(bot, "/start", ada)
    chat = account_of(ada).user
    job = submission.submit(user=chat, prompt="A red fox", source="telegram")
    finish_job(job)
    ledger.grant(user=chat, amount=100, reason="A prize")
    start = begin_on_web(browser)
    assert browser.get("/telegram/connect/state/waiting/").status_code == 204

    question = ask(bot, start, ada, first_name="Ada <3", username="ada_l")
    assert "the account web_ada on videos.example.org?" in question.text
    assert "100 credits move there." in question.text
    assert "Unspent welcome credits (450 credits) do not" in question.text
    assert account_of(ada).user == chat

    bot.telegram.press(question, "Yes, connect", sender=ada, first_name="Ada <3", username="ada_l")
    wait_for(lambda: "Now confirm it in your browser" in question.text, message=bot.log)
    assert link_below(question) == "https://videos.example.org/telegram/connect/"
    assert account_of(ada).user == chat
    assert browser.get("/telegram/connect/state/waiting/").headers["HX-Redirect"] == "/telegram/connect/"

    page = browser.get("/telegram/connect/").content.decode()
    assert "Ada &lt;3" in page
    assert "@ada_l" in page
    assert "100 credits move to your account." in page
    row = LinkRequest.objects.get()
    assert Client().post(f"/telegram/connect/{row.pk}/", {"answer": "yes"}).url.startswith("/accounts/login/")
    assert browser.post(f"/telegram/connect/{row.pk}/", {"answer": "yes"}).url == "/account/"

    assert account_of(ada).user == web
    assert (balance(chat), balance(web)) == (450, 600)
    job.refresh_from_db()
    chat.refresh_from_db()
    assert (job.user, chat.is_active) == (web, False)
    wait_for(lambda: last(bot, ada).text == (
        "✅ Connected with web_ada. One wallet, one history: you have 600 credits."
    ), message=bot.log)  # fmt: skip
    balance_in_russian = ask(bot, "/balance", ada, language_code="ru").text
    assert "Баланс: 600 кредитов" in balance_in_russian
    assert " · +100 · Аккаунты связаны: @ada_l" in balance_in_russian
    assert "A red fox" in browser.get("/").content.decode()
    assert audit().discrepancies == []
    # Pressing again changes nothing.
    browser.post(f"/telegram/connect/{row.pk}/", {"answer": "yes"})
    assert WalletMerge.objects.count() == 1


def test_a_link_works_once_for_ten_minutes_and_for_the_first_who_agrees(bot, ada, browser):
    start, eve = begin_on_web(browser), next(people)
    question, hers = ask(bot, start, ada), ask(bot, start, eve)
    press(bot, question, "Yes, connect")
    wait_for(lambda: "Now confirm it in your browser" in question.text)
    assert "does not work any more" in refusal_of(bot, press(bot, hers, "Yes, connect"))
    assert LinkRequest.objects.get().account.telegram_id == ada

    newer = begin_on_web(browser)
    assert LinkRequest.objects.filter(state="declined").count() == 1
    assert "does not work any more" in ask(bot, start, eve).text
    LinkRequest.objects.filter(state="open").update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "does not work any more" in ask(bot, newer, eve).text
    assert "does not work any more" in ask(bot, "/start link_" + "x" * 32, eve).text


def test_saying_no_on_either_side_connects_nothing(bot, ada, browser):
    question = ask(bot, begin_on_web(browser), ada)
    press(bot, question, "No")
    wait_for(lambda: question.text == "Nothing was connected.", message=bot.log)
    question = ask(bot, begin_on_web(browser), ada)
    press(bot, question, "Yes, connect")
    wait_for(lambda: "Now confirm it in your browser" in question.text)
    row = LinkRequest.objects.get(state="open")
    browser.post(f"/telegram/connect/{row.pk}/", {"answer": "no"})
    browser.post(f"/telegram/connect/{row.pk}/", {"answer": "yes"})
    assert account_of(ada).former_user is None


def test_nothing_is_joined_before_somebody_in_telegram_agreed(bot, browser):
    begin_on_web(browser)
    row = LinkRequest.objects.get()
    assert browser.post(f"/telegram/connect/{row.pk}/", {"answer": "yes"}).url == "/telegram/connect/"
    assert not WalletMerge.objects.exists()


# --- Begun in the chat ----------------------------------------------------------------------------------------------


def from_chat(bot: Bot, ada: int) -> str:
    """The path of the link that /link answers with."""
    return re.search(
        r"https://videos\.example\.org(/telegram/link/[\w-]{32}/)", link_below(ask(bot, "/link", ada))
    )[1]


def test_begun_in_the_chat_agreed_on_the_web_and_confirmed_in_the_chat(bot, ada, browser, web):
    path = from_chat(bot, ada)
    assert Client().get(path).url.startswith("/accounts/login/")
    page = browser.get(path).content.decode()
    assert f"· {ada}" in page
    assert "asked for this link to be connected with your account web_ada" in page
    assert browser.post(path, {"answer": "yes"}).url == "/telegram/connect/"
    assert account_of(ada).former_user is None
    question = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if "Yes, connect" in labels(m)], message=bot.log
    )[0]
    assert "the account web_ada on videos.example.org?" in question.text

    eve = next(people)
    ask(bot, "/start", eve)
    forged = bot.telegram.press_data(question, f"join:{LinkRequest.objects.get().pk}", sender=eve)
    assert "does not work any more" in refusal_of(bot, forged)
    assert account_of(ada).former_user is None

    press(bot, question, "Yes, connect")
    wait_for(lambda: question.text.startswith("✅ Connected with web_ada."), message=bot.log)
    assert account_of(ada).user == web
    assert browser.get("/telegram/connect/").status_code == 200
    bot.telegram.press_data(question, f"join:{LinkRequest.objects.get().pk}", sender=ada)
    wait_for(inbox_is_empty)
    assert WalletMerge.objects.count() == 1


def test_whoever_gets_hold_of_the_chats_link_joins_nothing_without_the_chat(bot, ada, browser, make_user):
    path = from_chat(bot, ada)
    thief = signed_in(make_user("thief"))
    thief.post(path, {"answer": "yes"})
    question = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if "Yes, connect" in labels(m)], message=bot.log
    )[0]
    assert "the account thief on" in question.text
    assert browser.post(path, {"answer": "yes"}).status_code == 410
    press(bot, question, "No")
    wait_for(lambda: question.text == "Nothing was connected.")
    assert account_of(ada).former_user is None


def test_in_a_group_nothing_about_accounts_is_said(bot, ada):
    for text in ("/link@videos_test_bot", "/login@videos_test_bot", "/unlink@videos_test_bot"):
        before = len(bot.telegram.shown(GROUP))
        bot.telegram.say(text, sender=ada, chat=GROUP)
        answer = bot.next_message(GROUP, after=before)
        assert "in private" in answer.text
    assert not LinkRequest.objects.exists()
    assert not LoginLink.objects.exists()


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(ada: int) -> TelegramAccount:
    return open_account(telegram_id=ada)


def agreed(web: User, chat: TelegramAccount) -> LinkRequest:
    token = linking.begin_on_web(user=web)
    return linking.answer_in_telegram(token=token, account=chat)


@pytest.mark.parametrize("side", ["web", "chat"])
def test_nothing_is_joined_while_a_video_is_made_and_it_goes_on_afterwards(web, chat, side):
    job = submission.submit(user=web if side == "web" else chat.user, prompt="A fox", source="api")
    row = agreed(web, chat)
    with pytest.raises(linking.LinkError, match=str(linking.VIDEO_IS_MADE)):
        linking.confirm(row, by=web)
    assert not WalletMerge.objects.exists()
    lifecycle.cancel(job=job)
    linking.confirm(row, by=web)
    assert account_of(chat.telegram_id).user == web


def test_nothing_is_joined_while_a_free_video_is_made(staff, chat):
    submission.submit(user=staff, prompt="A fox", source="web")
    row = agreed(staff, chat)
    with pytest.raises(linking.LinkError, match=str(linking.VIDEO_IS_MADE)):
        linking.confirm(row, by=staff)


def test_who_is_banned_staff_or_connected_is_not_joined(web, chat, make_user, staff):
    User.objects.filter(pk=chat.user_id).update(is_active=False)
    with pytest.raises(linking.LinkError, match=str(linking.NOT_ACTIVE)):
        agreed(web, chat)
    User.objects.filter(pk=chat.user_id).update(is_active=True, is_staff=True)
    with pytest.raises(linking.LinkError, match=str(linking.STAFF_STAYS)):
        agreed(web, chat)
    User.objects.filter(pk=chat.user_id).update(is_staff=False)
    row = agreed(web, chat)
    User.objects.filter(pk=web.pk).update(is_active=False)
    with pytest.raises(linking.LinkError, match=str(linking.NOT_ACTIVE)):
        linking.confirm(row, by=web)
    User.objects.filter(pk=web.pk).update(is_active=True)
    linking.confirm(row, by=web)
    with pytest.raises(linking.LinkError, match=str(linking.WEB_HAS_TELEGRAM)):
        linking.begin_on_web(user=web)
    with pytest.raises(linking.LinkError, match=str(linking.TELEGRAM_IS_JOINED)):
        agreed(make_user("third"), account_of(chat.telegram_id))


def test_two_who_confirm_at_once_join_one(web, chat, database_url):
    other = open_account(telegram_id=next(people))
    ours = agreed(web, chat)
    token = linking.begin_in_telegram(account=other)
    theirs = linking.answer_on_web(token=token, user=web)
    outcomes: list[object] = []

    def confirm(row: LinkRequest) -> None:
        with contextlib.closing(connection):
            try:
                outcomes.append(linking.confirm(row, by=web).pk)
            except linking.LinkError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=confirm, args=[row]) for row in (ours, theirs, ours, theirs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert WalletMerge.objects.count() == 1
    assert sorted(map(str, outcomes)) == sorted(
        map(str, [WalletMerge.objects.get().pk] * 2 + [linking.WEB_HAS_TELEGRAM] * 2)
    )
    assert audit().discrepancies == []


# --- Parting --------------------------------------------------------------------------------------------------------


def test_parting_in_the_chat_leaves_credits_and_videos_on_the_web_and_gives_no_second_sign_up_grant(
    bot, ada, web, finish_job
):
    ask(bot, "/start", ada)
    chat = account_of(ada)
    job = finish_job(submission.submit(user=chat.user, prompt="A fox", source="telegram"))
    linking.confirm(agreed(web, chat), by=web)
    question = ask(bot, "/unlink", ada)
    assert "Disconnect this Telegram account from web_ada?" in question.text
    press(bot, question, "Disconnect")
    wait_for(lambda: "no longer connected with web_ada" in question.text, message=bot.log)
    job.refresh_from_db()
    assert (account_of(ada).user, job.user) == (chat.user, web)
    assert (balance(web), balance(chat.user)) == (500, 450)
    assert "Balance: 450 credits" in ask(bot, "/balance", ada).text
    assert "not connected" in ask(bot, "/unlink", ada).text
    linking.confirm(agreed(web, account_of(ada)), by=web)
    assert balance(web) == 500
    assert audit().discrepancies == []


def test_parting_on_the_web_asks_first_and_tells_the_chat(bot, ada, browser, web):
    ask(bot, "/start", ada)
    linking.confirm(agreed(web, account_of(ada)), by=web)
    assert "Disconnect" in browser.get("/account/").content.decode()
    assert "Credits and videos stay here" in browser.get("/telegram/disconnect/").content.decode()
    assert account_of(ada).user == web
    assert browser.post("/telegram/disconnect/").url == "/account/"
    assert account_of(ada).user != web
    wait_for(lambda: "no longer connected with web_ada" in last(bot, ada).text, message=bot.log)


def test_who_is_banned_cannot_part_and_go_on(web, chat):
    linking.confirm(agreed(web, chat), by=web)
    User.objects.filter(pk=web.pk).update(is_active=False)
    with pytest.raises(linking.LinkError, match=str(linking.NOT_ACTIVE)):
        linking.part(account=chat)


def test_staff_undo_it_by_entries_of_their_own_and_give_videos_back_to_who_paid(web, chat, staff, finish_job):
    source = chat.user
    ledger.grant(user=source, amount=100, reason="A prize")
    theirs = finish_job(
        submission.submit(user=source, prompt="Theirs", source="telegram", idempotency_key="same")
    )
    ours = finish_job(submission.submit(user=web, prompt="Ours", source="web", idempotency_key="same"))
    before = balance(source), balance(web)
    merge = linking.confirm(agreed(web, chat), by=web)
    assert {job.user for job in GenerationJob.objects.all()} == {web}
    admin = Client()
    admin.force_login(staff)
    page = f"/admin/accounts/walletmerge/{merge.pk}/undo/"
    assert "100 credits" in admin.get(page).content.decode()
    assert admin.post(page, {"reason": "Two people", "once": uuid.uuid4()}).status_code == 302
    assert (balance(source), balance(web)) == before
    theirs.refresh_from_db()
    ours.refresh_from_db()
    assert (theirs.user, ours.user) == (source, web)
    assert account_of(chat.telegram_id).user == source
    assert User.objects.get(pk=source.pk).is_active
    assert "was undone before" in admin.get(page, follow=True).content.decode()
    assert audit().discrepancies == []


def test_everything_that_belongs_to_a_user_was_thought_of():
    """Anything new that belongs to users has to be named here, with its fate when two users become one."""
    moves = {"jobs", "credit_account", "telegram_account", "former_telegram_account"}
    stays_and_sleeps = {
        "api_keys",  # refused while their owner is not active, and theirs again after parting
        "logentry",
        "emailaddress",
        "authenticator",
        "usersession",
        "link_requests",
        "login_links",  # looked at together with whose the Telegram account is now
        "star_payments",  # say who paid then
        "limits",  # copied
        "ban",  # a banned account is never joined
        "notices",  # of what happened to that account
    }
    relations = {relation.name for relation in User._meta.related_objects if not relation.hidden}
    assert relations - moves - stays_and_sleeps == set()


def test_closing_the_account_forgets_the_person_on_telegram_and_who_they_were(web, chat):
    linking.confirm(agreed(web, chat), by=web)
    privacy.close(user=web)
    assert not TelegramAccount.objects.exists()
    former = User.objects.get(pk=chat.user_id)
    assert former.username.startswith("deleted_")
    assert former.anonymised_at is not None
    assert not User.objects.filter(username__contains=str(chat.telegram_id)).exists()


# --- Signing in -----------------------------------------------------------------------------------------------------


def login_path(bot: Bot, ada: int) -> str:
    return re.search(
        r"https://videos\.example\.org(/telegram/login/[\w-]{32}/)", link_below(ask(bot, "/login", ada))
    )[1]


def test_the_link_of_login_signs_in_once_and_only_when_the_button_is_pressed(bot, ada):
    path, client = login_path(bot, ada), Client()
    for _ in range(3):  # previews
        page = client.get(path)
        assert page.status_code == 200
        assert f"tg_{ada}" in page.content.decode()
    assert "_auth_user_id" not in client.session
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert client.post(path).status_code == 302
    assert client.session["_auth_user_id"] == str(account_of(ada).user.pk)
    assert client.get("/credits/").status_code == 200
    again = Client()
    assert (again.get(path).status_code, again.post(path).status_code) == (410, 410)
    assert "_auth_user_id" not in again.session


def test_a_link_of_login_ends_after_minutes_with_a_newer_one_with_a_ban_and_with_a_new_owner(bot, ada, web):
    def works(path: str) -> bool:
        return Client().get(path).status_code == 200

    first = login_path(bot, ada)
    second = login_path(bot, ada)
    assert (works(first), works(second)) == (False, True)
    user = account_of(ada).user
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert not works(second)
    assert "not active" in ask(bot, "/login", ada).text
    User.objects.filter(pk=user.pk).update(is_active=True)
    LoginLink.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert not works(second)
    third = login_path(bot, ada)
    linking.confirm(agreed(web, account_of(ada)), by=web)
    assert not works(third)
    path, client = login_path(bot, ada), Client()
    client.post(path)
    assert client.session["_auth_user_id"] == str(web.pk)


def test_a_second_step_is_asked_for_after_the_link_too(bot, ada):
    ask(bot, "/start", ada)
    TOTP.activate(account_of(ada).user, generate_totp_secret())
    path, client = login_path(bot, ada), Client()
    assert client.post(path).url.startswith("/accounts/2fa/authenticate/")
    assert "_auth_user_id" not in client.session


def test_staff_get_no_link_into_their_account(bot, ada):
    ask(bot, "/start", ada)
    User.objects.filter(pk=account_of(ada).user_id).update(is_staff=True)
    assert "on the web only" in ask(bot, "/start login_here", ada).text, (
        "as the site's sign-in page has it asked"
    )
    assert not LoginLink.objects.exists()


@pytest.mark.parametrize(
    "path", ["/telegram/login/x/", "/telegram/login/" + "é" * 32 + "/", "/telegram/link/%00/"]
)
def test_what_is_no_token_is_told_so(browser, path):
    assert browser.get(path).status_code == 410


# --- A video by link ------------------------------------------------------------------------------------------------


def test_a_video_too_large_for_telegram_is_watched_without_signing_in_until_it_is_deleted(
    chat, finish_job, monkeypatch, settings
):
    job = finish_job(submission.submit(user=chat.user, prompt="A red fox", source="telegram"))
    path = links.video_page(job).removeprefix(settings.SITE_URL)
    stranger = Client()
    page = stranger.get(path)
    assert "A red fox" in page.content.decode()
    answer = stranger.get(path + "file.mp4", headers={"Range": "bytes=0-11"})
    assert answer.status_code == 206
    assert stranger.get(path.replace(job.pk.hex, "0" * 32)).status_code == 404
    assert stranger.get("/telegram/video/nonsense/").status_code == 404
    with monkeypatch.context() as later:
        later.setattr(links, "VIDEO_LIFE", -1)
        assert "too old" in stranger.get(path).content.decode()
        assert stranger.get(path + "file.mp4").status_code == 404
    lifecycle.delete(job=job)
    assert stranger.get(path).status_code == 404
