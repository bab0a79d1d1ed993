"""The Telegram door: the real `run_bot` process against a Bot API server that refuses what Telegram refuses."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from accounts import ledger
from accounts.models import User
from generation import lifecycle, stored_files
from generation.models import GenerationJob
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate
from tests.bot_api_server import BotApiServer, Message
from tests.environment import REPOSITORY
from tests.processes import Processes, wait_for

NASTY = "_*[]()~>#+-=|{}.!<b>&"
GROUP = -1001234
people = itertools.count(1000)


# --- One bot for most tests; a test that hurts it starts its own --------------------------------------------


class Bot:
    """The process under test and the Telegram it talks to."""

    def __init__(self, telegram: BotApiServer, processes: Processes) -> None:
        self.telegram, self.processes = telegram, processes

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = self.processes.start("run_bot", **self.telegram.environment, **environment)
        polls = len(self.telegram.called("getUpdates"))
        wait_for(
            lambda: len(self.telegram.called("getUpdates")) > polls or process.poll() is not None,
            message="the bot did not come up: " + self.log,
        )
        return process

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes.running["run_bot"]

    def kill(self) -> None:
        self.processes.kill("run_bot")

    def stop(self) -> int:
        return self.processes.stop("run_bot")

    @property
    def log(self) -> str:
        return self.processes.log("run_bot")

    def answer_to(self, text: str, *, sender: int, **facts: Any) -> str:
        """What the bot says next in the sender's own chat."""
        before = len(self.telegram.shown(sender))
        self.telegram.say(text, sender=sender, **facts)
        return self.next_message(sender, after=before).text

    def next_message(self, chat: int, *, after: int = 0) -> Message:
        return wait_for(
            lambda: self.telegram.shown(chat)[after:], message=f"no answer in chat {chat}: {self.log}"
        )[0]


@pytest.fixture(scope="module")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(autouse=True)
def _shared_media_root(settings: Any, media_root: Path) -> None:
    """The bot reads what the tests store, and it outlives a test."""
    settings.MEDIA_ROOT = media_root


def _processes(database_url: str, media_root: Path, logs: Path) -> Processes:
    return Processes(
        database_url=database_url,
        media_root=media_root,
        logs=logs,
        VIDEO_COOLDOWN_SECONDS="0",
        SITE_URL="https://videos.example.org",
    )


@pytest.fixture(scope="module")
def _shared_bot(media_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bot]]:
    bots: list[Bot] = []
    yield bots
    for bot in bots:
        bot.processes.stop_all()
        bot.telegram.__exit__()


@pytest.fixture
def bot(database_url: str, _shared_bot: list[Bot], media_root: Path) -> Bot:
    """A bot that is at work. It goes on from test to test: the tables are emptied under it, the connections stay."""
    if not _shared_bot:
        processes = _processes(database_url, media_root, media_root)
        _shared_bot.append(Bot(BotApiServer().__enter__(), processes))
        _shared_bot[0].start()
    [bot] = _shared_bot
    assert bot.process.poll() is None, bot.log
    bot.telegram.reset()
    return bot


@pytest.fixture
def own_bot(database_url: str, media_root: Path, tmp_path: Path) -> Iterator[Bot]:
    """A bot of the test's own, not started yet."""
    # Another bot than the shared one, which goes on working meanwhile.
    with BotApiServer(token=f"{next(people)}:for-tests-only-{next(people)}-AAAAAAAAAAAAAAAAA") as telegram:
        bot = Bot(telegram, _processes(database_url, media_root, tmp_path))
        yield bot
        bot.processes.stop_all()


@pytest.fixture
def ada() -> int:
    """Somebody who never wrote before."""
    return next(people)


def user_of(telegram_id: int) -> User:
    return TelegramAccount.objects.get(telegram_id=telegram_id).user


def job_of(telegram_id: int) -> GenerationJob:
    return wait_for(
        lambda: GenerationJob.objects.filter(user__telegram_account__telegram_id=telegram_id).first(),
        message="no job was made",
    )


def inbox_is_empty() -> bool:
    return not TelegramUpdate.objects.filter(state=TelegramUpdate.State.RECEIVED).exists()


def the_status(bot: Bot, chat: int) -> Message:
    return wait_for(
        lambda: [message for message in bot.telegram.shown(chat) if message.text.startswith("🎬 Generating")],
        message=f"no status message: {bot.log}",
    )[0]


def the_video(bot: Bot, chat: int) -> Message:
    return wait_for(
        lambda: [message for message in bot.telegram.shown(chat) if message.video],
        message=f"no video came: {bot.log}",
    )[0]


# --- Commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["/help", "/help@videos_test_bot", "what can you do?", "/nonsense", "/VIDEOS"]
)
def test_help_is_what_everything_unknown_gets(bot: Bot, ada: int, text: str):
    answer = bot.answer_to(text, sender=ada)
    assert "/video <prompt> - Generate AI video (50 credits, ~30s)" in answer
    assert "/balance" in answer


def test_a_picture_gets_help_and_not_silence(bot: Bot, ada: int):
    photo = [{"file_id": "x", "file_unique_id": "y", "width": 1, "height": 1}]
    chat = {"id": ada, "type": "private", "first_name": "Ada"}
    bot.telegram.push_message(
        {"chat": chat, "from": {"id": ada, "is_bot": False, "first_name": "Ada"}, "photo": photo}
    )
    assert "/video <prompt>" in bot.next_message(ada).text


def test_start_welcomes_and_opens_an_account_with_credits(bot: Bot, ada: int):
    answer = bot.answer_to("/start", sender=ada, first_name="Ada <3", username="ada_l")
    assert "Welcome, Ada <3!" in answer
    assert "Balance: 500 credits" in answer
    account = TelegramAccount.objects.select_related("user").get(telegram_id=ada)
    assert (account.user.username, account.username, account.first_name) == (f"tg_{ada}", "ada_l", "Ada <3")
    assert not account.user.has_usable_password()


def test_a_user_name_that_is_taken_is_not_taken_over(bot: Bot, ada: int):
    stranger = User.objects.create_user(username=f"tg_{ada}", password="a long enough password")
    bot.answer_to("/start", sender=ada)
    assert user_of(ada).pk != stranger.pk


def test_video_alone_says_how_it_is_used_and_what_it_costs(bot: Bot, ada: int):
    answer = bot.answer_to("/video", sender=ada)
    assert answer.startswith("🎬 Video Generation\n")
    assert "/video <your prompt>" in answer
    assert "Example: /video " in answer
    assert "💰 Cost: 50 credits\n⏱ Duration: ~30 seconds" in answer
    assert not GenerationJob.objects.exists()


def test_balance_shows_what_is_free_and_what_is_held(bot: Bot, ada: int):
    assert bot.answer_to("/balance", sender=ada) == "💰 Balance: 500 credits"
    bot.answer_to("/video a red fox", sender=ada)
    answer = bot.answer_to("/balance", sender=ada)
    assert answer == "💰 Balance: 450 credits\n50 credits held for videos being made"


def test_history_shows_the_last_five_with_what_became_of_them(bot: Bot, ada: int):
    assert "no videos yet" in bot.answer_to("/history", sender=ada)
    for number in range(6):
        bot.answer_to(f"/video fox number {number} <b>", sender=ada)
    lifecycle.cancel(job=GenerationJob.objects.get(prompt="fox number 4 <b>"))
    answer = bot.answer_to("/history", sender=ada)
    assert "fox number 0" not in answer
    assert [answer.index(f"fox number {number} <b>") for number in (5, 4, 3, 2, 1)] == sorted(
        answer.index(f"fox number {number} <b>") for number in (5, 4, 3, 2, 1)
    )
    assert "🚫 fox number 4 <b>\nCanceled" in answer
    assert "⏳ fox number 5 <b>\nQueued" in answer


def test_cancel_stops_the_newest_video_and_gives_the_credits_back(bot: Bot, ada: int):
    assert "nothing to cancel" in bot.answer_to("/cancel", sender=ada)
    bot.answer_to("/video the first", sender=ada)
    bot.answer_to("/video the second", sender=ada)
    bot.telegram.say("/cancel", sender=ada)
    wait_for(lambda: GenerationJob.objects.filter(prompt="the second", state="canceled").exists())
    assert GenerationJob.objects.get(prompt="the first").state == "queued"
    assert user_of(ada).credit_account.balance == 450
    # The answer to /cancel, and the status message that turns into the same words.
    words = "🚫 Video canceled\nPrompt: the second\nNo credits were deducted."
    wait_for(lambda: [message.text for message in bot.telegram.shown(ada)].count(words) == 2, message=bot.log)


def test_the_menu_of_commands_is_set(bot: Bot):
    wait_for(lambda: len(bot.telegram.menus) == 2)
    names = {language: [entry["command"] for entry in menu] for language, menu in bot.telegram.menus.items()}
    assert names[""] == names["ru"] == ["video", "balance", "history", "cancel", "help"]


# --- Groups -------------------------------------------------------------------------------------------------


def test_in_a_group_a_command_is_answered_to_the_asker_from_their_own_wallet(bot: Bot, ada: int):
    asked = bot.telegram.say("/video@videos_test_bot a red fox", sender=ada, chat=GROUP)
    status = the_status(bot, GROUP)
    assert status.reply_to == asked
    assert job_of(ada).user == user_of(ada)


def test_in_a_group_the_bot_is_silent_when_it_is_not_meant(bot: Bot, ada: int):
    for text in ("hello all", "/nonsense", "/start@another_bot"):
        bot.telegram.say(text, sender=ada, chat=GROUP)
    bot.telegram.say("/balance", sender=ada, chat=GROUP)
    wait_for(lambda: bot.telegram.shown(GROUP) and inbox_is_empty())
    assert [message.text for message in bot.telegram.shown(GROUP)] == ["💰 Balance: 500 credits"]


# --- Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("x" * 201, "❌ Prompt too long. Maximum 200 characters."),
        ("a\x00b", "❌ The prompt has characters that cannot be stored."),
        ("a\ud800b", "❌ The prompt has characters that cannot be stored."),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_in_words(bot: Bot, ada: int, prompt: str, answer: str):
    assert bot.answer_to(f"/video {prompt}", sender=ada) == answer
    assert not GenerationJob.objects.exists()
    assert user_of(ada).credit_account.held == 0


def test_too_few_credits_are_said_with_both_figures(bot: Bot, ada: int):
    bot.answer_to("/start", sender=ada)
    ledger.adjust(user=user_of(ada), amount=-470, reason="Spent elsewhere", actor=user_of(ada))
    assert bot.answer_to("/video a red fox", sender=ada) == (
        "❌ Insufficient credits. You need 50 credits to generate a video. Your balance: 30 credits"
    )
    assert not GenerationJob.objects.exists()


def test_the_cooldown_says_how_long_to_wait(own_bot: Bot, ada: int):
    own_bot.start(VIDEO_COOLDOWN_SECONDS="60")
    own_bot.answer_to("/video a red fox", sender=ada)
    answer = own_bot.answer_to("/video another", sender=ada)
    assert answer.startswith("⏳ Please wait ")
    assert answer.endswith(" seconds before generating another video.")
    assert GenerationJob.objects.count() == 1


def test_a_banned_person_is_told_so(bot: Bot, ada: int):
    bot.answer_to("/start", sender=ada)
    User.objects.filter(pk=user_of(ada).pk).update(is_active=False)
    assert bot.answer_to("/video a red fox", sender=ada) == "❌ This account is not active."


# --- From the prompt to the video ---------------------------------------------------------------------------


def test_a_prompt_becomes_a_video_in_the_chat(bot: Bot, ada: int, finish_job: Callable[..., Any], clip: Path):
    asked = bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    assert status.text == (
        "🎬 Generating video...\nPrompt: a red fox\n⏱ This takes ~30 seconds. Please wait..."
    )
    assert status.reply_to == asked
    finish_job(job_of(ada))
    video = the_video(bot, ada)
    assert video.text == "✅ Video generated!\nPrompt: a red fox\nTime: 28.3s\nCredits remaining: 450"
    assert video.video == clip.read_bytes()
    assert video.reply_to == asked
    wait_for(lambda: status.deleted, message="the status message stays")
    delivery = wait_for(lambda: JobMessage.objects.filter(next_attempt_at=None, state="sent").first())
    assert bot.telegram.files[delivery.file_id] == clip.read_bytes()
    [call] = bot.telegram.called("sendVideo")
    assert (call.parameters["width"], call.parameters["height"]) == ("96", "64")
    assert call.parameters["supports_streaming"] == "true"


def test_a_prompt_of_markup_comes_back_as_it_was_written(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    assert f"Prompt: {NASTY}\n" in the_status(bot, ada).text
    assert f" {NASTY}\n" in bot.answer_to("/history", sender=ada)
    finish_job(job_of(ada))
    assert f"Prompt: {NASTY}\n" in the_video(bot, ada).text
    assert job_of(ada).prompt == NASTY


def test_a_prompt_longer_than_a_caption_is_shortened_and_not_refused(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start(MAX_PROMPT_LENGTH="4000")
    own_bot.telegram.say("/video " + "🦊&" * 1500, sender=ada)
    assert the_status(own_bot, ada).text.count("🦊&") > 200
    finish_job(job_of(ada))
    assert "🦊&…\nTime: 28.3s" in the_video(own_bot, ada).text


def test_the_status_message_follows_the_steps(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    for step in (5, 12):
        assert lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=step)
    wait_for(lambda: "▓▓▓▓▓▓░░░░ step 12 of 20" in status.text, message=bot.log)
    assert "Prompt: a red fox" in status.text
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    wait_for(lambda: "almost done" in status.text)
    edits = [call.at for call in bot.telegram.called("editMessageText")]
    assert all(later - earlier >= 1.4 for earlier, later in itertools.pairwise(edits))


def test_the_status_message_says_the_place_in_line(bot: Bot, ada: int):
    bot.telegram.say("/video the first", sender=ada)
    the_status(bot, ada)
    grace, edsger = next(people), next(people)
    for sender in (grace, edsger):
        bot.telegram.say("/video later", sender=sender)
        the_status(bot, sender)
    status = the_status(bot, edsger)
    assert status.text.endswith("\n\n⏳ 3rd in line")
    lifecycle.cancel(job=job_of(ada))
    wait_for(lambda: status.text.endswith("\n\n⏳ 2nd in line"), message=bot.log)


def test_progress_shown_before_a_restart_goes_on_after_it(
    own_bot: Bot, ada: int, start_job: Callable[..., Any], finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    attempt = start_job(job_of(ada))
    wait_for(inbox_is_empty)
    own_bot.kill()
    assert lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=10)
    own_bot.start()
    wait_for(lambda: "step 10 of 20" in status.text, message=own_bot.log)
    assert len(own_bot.telegram.shown(ada)) == 1


def test_a_video_that_overtakes_its_status_message_removes_it(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.hold("sendMessage")
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: JobMessage.objects.filter(state=JobMessage.State.SENT).exists())
    bot.telegram.release()
    wait_for(lambda: status.deleted, message=bot.log)


def test_a_video_its_owner_deleted_before_it_was_sent_is_not_sent(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.fail("sendChatAction", 429, "Too Many Requests: retry after 2", retry_after=2)
    lifecycle.delete(job=finish_job(job_of(ada)))
    wait_for(lambda: status.deleted, message=bot.log)
    assert not [message for message in bot.telegram.shown(ada) if message.text.startswith("❌")]


def test_a_failure_says_why_and_that_nothing_was_charged(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, code="timed_out", message="Video generation timed out (>90s)", error="test"
    )
    wait_for(lambda: status.deleted, message=bot.log)
    [message] = bot.telegram.shown(ada)
    assert message.text == (
        "❌ Video generation failed\nPrompt: a red fox\nError: Video generation timed out (>90s)\n"
        "No credits were deducted."
    )
    assert user_of(ada).credit_account.balance == 500


def test_a_failure_that_says_itself_that_nothing_was_charged_says_it_once(
    bot: Bot, ada: int, start_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    attempt = start_job(job_of(ada))
    words = "Video generated but download failed. No credits were deducted. Please try again."
    lifecycle.attempt_failed(attempt_id=attempt.pk, code="download_failed", message=words, error="test")
    message = wait_for(lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("❌")])[0]
    assert message.text.endswith(f"\nError: {words}")


def test_a_job_from_elsewhere_is_not_delivered_here(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.answer_to("/start", sender=ada)
    finish_job(lifecycle.submit(user=user_of(ada), prompt="on the web", source="web"))
    bot.answer_to("/balance", sender=ada)
    assert not bot.telegram.called("sendVideo")


# --- What Telegram does to a bot ----------------------------------------------------------------------------


def test_an_update_that_cannot_be_parsed_is_put_aside_and_not_fetched_for_ever(bot: Bot, ada: int):
    number = bot.telegram.push({"message": {"chat": "nonsense"}})
    bot.answer_to("/balance", sender=ada)
    update = wait_for(
        lambda: TelegramUpdate.objects.filter(update_id=number, state=TelegramUpdate.State.FAILED).first()
    )
    assert "cannot be parsed" in update.error
    assert "nonsense" in update.raw
    wait_for(lambda: number not in bot.telegram.unacknowledged())


def test_an_update_that_is_brought_twice_makes_one_job(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    wait_for(inbox_is_empty)
    update = TelegramUpdate.objects.get()
    bot.telegram.push(json.loads(update.raw), update_id=update.update_id)
    bot.answer_to("/balance", sender=ada)
    assert GenerationJob.objects.count() == 1
    assert TelegramUpdate.objects.filter(update_id=update.update_id).count() == 1


def test_ids_that_begin_again_lower_are_not_thrown_away(bot: Bot, ada: int):
    """Telegram draws the ids anew after an idle week."""
    bot.answer_to("/start", sender=ada)
    wait_for(lambda: inbox_is_empty() and not bot.telegram.unacknowledged())
    polls = len(bot.telegram.called("getUpdates"))
    bot.telegram.end_poll()
    wait_for(lambda: len(bot.telegram.called("getUpdates")) > polls)
    person = {"id": ada, "is_bot": False, "first_name": "Ada"}
    chat = {"id": ada, "type": "private", "first_name": "Ada"}
    message = {"message_id": 1, "date": 1, "chat": chat, "from": person, "text": "/balance"}
    bot.telegram.push({"message": message}, update_id=5)
    assert bot.next_message(ada, after=1).text == "💰 Balance: 500 credits"


def test_too_many_requests_is_waited_out(bot: Bot, ada: int):
    bot.telegram.fail("sendMessage", 429, "Too Many Requests: retry after 1", retry_after=1)
    assert bot.answer_to("/balance", sender=ada) == "💰 Balance: 500 credits"
    first, second = bot.telegram.called("sendMessage")
    assert second.at - first.at >= 1


def test_an_answer_survives_errors_of_the_server_and_a_lost_connection(bot: Bot, ada: int):
    bot.telegram.fail("sendMessage", 502, "Bad Gateway")
    bot.telegram.drop("sendMessage")
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    assert GenerationJob.objects.count() == 1


def test_polling_goes_on_after_a_conflict_and_an_outage(bot: Bot, ada: int):
    bot.answer_to("/start", sender=ada)
    bot.telegram.fail("getUpdates", 409, "Conflict: terminated by other getUpdates request")
    bot.telegram.fail("getUpdates", 500, "Internal Server Error")
    bot.telegram.drop("getUpdates")
    bot.telegram.say("/balance", sender=ada)
    wait_for(lambda: len(bot.telegram.shown(ada)) == 2, message=bot.log)


def test_a_video_is_uploaded_again_after_errors(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.fail("sendVideo", 500, "Internal Server Error")
    bot.telegram.fail("sendVideo", 429, "Too Many Requests: retry after 1", retry_after=1)
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: status.deleted)
    assert len(bot.telegram.called("sendVideo")) == 3


def test_a_video_that_cannot_be_uploaded_comes_as_a_link(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    bot.telegram.fail("sendVideo", 413, "Request Entity Too Large")
    job = finish_job(job_of(ada))
    message = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("✅")], message=bot.log
    )[0]
    assert message.text.endswith(f"https://videos.example.org/videos/{job.public_id}/")
    assert "Credits remaining: 450" in message.text


def test_a_video_above_fifty_megabytes_comes_as_a_link(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    attempt = start_job(job_of(ada))
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk, generation_ms=1000)
    stored = lifecycle.StoredVideo(
        video="videos/large.mp4",
        poster="",
        width=96,
        height=64,
        frames=16,
        duration_ms=2000,
        size_bytes=51 * 1000 * 1000,
    )
    stored_files.announce(stored.files)
    assert lifecycle.complete(attempt_id=attempt.pk, stored=stored)
    message = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("✅")], message=bot.log
    )[0]
    assert f"/videos/{job_of(ada).public_id}/" in message.text
    assert not bot.telegram.called("sendVideo")


def test_after_repeated_failures_a_link_is_sent(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    bot.telegram.fail("sendVideo", 500, "Internal Server Error", times=100)
    finish_job(job_of(ada))
    wait_for(lambda: [m for m in bot.telegram.shown(ada) if "/videos/video_" in m.text], message=bot.log)
    assert len(bot.telegram.called("sendVideo")) == 4


def test_whoever_blocked_the_bot_is_not_tried_again(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    bot.telegram.blocked_by.add(ada)
    finish_job(job_of(ada))
    row = wait_for(lambda: JobMessage.objects.filter(state=JobMessage.State.FAILED).first(), message=bot.log)
    assert "blocked by the user" in row.error
    assert row.next_attempt_at is None
    assert TelegramAccount.objects.get(telegram_id=ada).blocked_at is not None
    bot.telegram.blocked_by.clear()
    bot.answer_to("/balance", sender=ada)
    assert TelegramAccount.objects.get(telegram_id=ada).blocked_at is None
    assert not bot.telegram.called("sendVideo")


def test_a_status_message_that_the_person_deleted_does_not_hinder_the_video(
    bot: Bot, ada: int, start_job: Callable[..., Any], finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada).deleted = True
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(
        lambda: JobMessage.objects.filter(state="sent", status_message_id=None, next_attempt_at=None).exists()
    )


# --- What happens to the process ----------------------------------------------------------------------------


def test_commands_survive_kill_9_and_become_one_job_each(own_bot: Bot, ada: int):
    own_bot.start()
    senders = [next(people) for _ in range(12)]
    for number, sender in enumerate(senders):
        own_bot.telegram.say("/video a red fox", sender=sender)
        if number % 4 == 3:
            wait_for(lambda: own_bot.telegram.called("sendMessage"))
            own_bot.kill()
            own_bot.start()
    for sender in senders:
        the_status(own_bot, sender)
    wait_for(inbox_is_empty, message=own_bot.log)
    assert sorted(TelegramAccount.objects.values_list("telegram_id", flat=True)) == senders
    assert GenerationJob.objects.count() == len(senders)
    # A kill between a send and its mark repeats one message, and there were three.
    assert len(own_bot.telegram.called("sendMessage")) <= len(senders) + 3 * 4


def test_a_job_that_ends_while_the_bot_is_down_is_delivered_when_it_is_back(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.kill()
    finish_job(job_of(ada))
    own_bot.start()
    the_video(own_bot, ada)
    wait_for(lambda: status.deleted)


def test_a_kill_in_the_middle_of_an_upload_loses_nothing(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.drop("sendVideo", times=50)
    finish_job(job_of(ada))
    wait_for(lambda: own_bot.telegram.called("sendVideo"))
    own_bot.kill()
    own_bot.telegram.heal()
    own_bot.start()
    the_video(own_bot, ada)
    assert status.video


def test_a_video_that_may_have_arrived_before_a_kill_is_not_sent_again_but_takes_the_place_of_its_status(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any], clip: Path
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.hold("sendVideo")
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(lambda: JobMessage.objects.get().state == JobMessage.State.SENT, message=own_bot.log)
    assert len(own_bot.telegram.called("sendVideo")) == 1
    assert status.video == clip.read_bytes() and not status.deleted
    assert status.text.startswith("✅ Video generated!")
    assert JobMessage.objects.get().file_id
    assert user_of(ada).credit_account.balance == 450


def test_a_video_whose_answer_was_lost_takes_the_place_of_its_status(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.drop("sendVideo", after_doing=True)
    finish_job(job_of(ada))
    wait_for(lambda: status.video, message=bot.log)
    assert len(bot.telegram.called("sendVideo")) == 1


def test_a_video_that_may_have_arrived_is_sent_again_where_its_status_is_gone(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.drop("sendVideo", after_doing=True)
    status.deleted = True
    finish_job(job_of(ada))
    wait_for(lambda: len(bot.telegram.called("sendVideo")) == 2, message=bot.log)
    wait_for(lambda: JobMessage.objects.get().state == JobMessage.State.SENT)


def test_answers_leave_one_after_the_other_so_that_a_kill_repeats_one_at_most(own_bot: Bot, ada: int):
    own_bot.start()
    own_bot.telegram.hold("sendMessage")
    for sender in range(ada, ada + 5):
        own_bot.telegram.say("/balance", sender=sender)
    wait_for(lambda: TelegramUpdate.objects.count() == 5)
    wait_for(lambda: own_bot.telegram.called("sendMessage"))
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(inbox_is_empty, message=own_bot.log)
    assert len(own_bot.telegram.called("sendMessage")) == 6


def test_a_message_that_was_refused_keeps_no_other_waiting(bot: Bot, ada: int):
    bot.telegram.fail("sendMessage", 500, "Internal Server Error", times=2)
    bot.telegram.say("/balance", sender=ada)
    wait_for(lambda: bot.telegram.called("sendMessage"))
    bot.telegram.say("/balance", sender=ada + 1)
    wait_for(lambda: bot.telegram.shown(ada + 1) and bot.telegram.shown(ada), message=bot.log)


def test_sigterm_lets_an_upload_finish(own_bot: Bot, ada: int, finish_job: Callable[..., Any]):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.hold("sendVideo")
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    own_bot.process.terminate()
    wait_for(lambda: "stopping" in own_bot.log)
    own_bot.telegram.release()
    assert own_bot.process.wait(10) == 0
    assert JobMessage.objects.get().state == JobMessage.State.SENT


def test_sigterm_stops_it_within_ten_seconds(own_bot: Bot, ada: int):
    own_bot.start()
    own_bot.answer_to("/start", sender=ada)
    began = time.monotonic()
    assert own_bot.stop() == 0
    assert time.monotonic() - began < 10
    assert "the bot has stopped" in own_bot.log


def test_a_second_instance_stands_by_until_the_first_is_gone(own_bot: Bot, ada: int):
    first = own_bot.start()
    with (own_bot.processes.logs / "second.log").open("ab") as log:
        second = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "manage.py"), "run_bot"],
            env=own_bot.processes.environment | own_bot.telegram.environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "standing by" in (own_bot.processes.logs / "second.log").read_text())
        own_bot.answer_to("/start", sender=ada)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        own_bot.answer_to("/balance", sender=ada)
        assert second.poll() is None
        assert not [call for call in own_bot.telegram.called("getUpdates") if "409" in str(call.parameters)]
    finally:
        second.terminate()
        second.wait(15)


def test_it_goes_on_after_its_database_connections_are_cut(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    the_status(own_bot, ada)
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.fetchone()[0]
        assert own_bot.answer_to("/balance", sender=ada).startswith("💰 Balance: 450 credits")
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    assert own_bot.process.poll() is None


def test_telegram_may_be_away_when_the_bot_starts(own_bot: Bot, ada: int):
    own_bot.telegram.fail("getMe", 502, "Bad Gateway", times=2)
    own_bot.start()
    assert "Welcome" in own_bot.answer_to("/start", sender=ada)


def test_old_updates_are_deleted_after_a_week(own_bot: Bot):
    week = timezone.now() - timedelta(days=8)
    TelegramUpdate.objects.create(bot_id=1, update_id=1, raw="{}", state="done", settled_at=week)
    young = TelegramUpdate.objects.create(
        bot_id=1, update_id=2, raw="{}", state="done", settled_at=timezone.now()
    )
    own_bot.start()
    wait_for(lambda: TelegramUpdate.objects.count() == 1, message=own_bot.log)
    assert TelegramUpdate.objects.get() == young


# --- What staff see ---------------------------------------------------------------------------------------


@pytest.fixture
def failed_delivery(user: User) -> JobMessage:
    job = lifecycle.submit(user=user, prompt="a red fox", source="telegram")
    lifecycle.cancel(job=job)
    return JobMessage.objects.create(
        job=job, bot_id=1, chat_id=1, state=JobMessage.State.FAILED, error="gone"
    )


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["telegramaccount", "telegramupdate", "jobmessage"])
def test_staff_can_look_at_everything_and_change_nothing(
    admin_client: Any, failed_delivery: JobMessage, page: str
):
    TelegramAccount.objects.create(telegram_id=1, user=failed_delivery.job.user)
    update = TelegramUpdate.objects.create(bot_id=1, update_id=1, raw="{}", state="failed", error="broken")
    assert admin_client.get(f"/admin/telegram_bot/{page}/").status_code == 200
    assert admin_client.get(f"/admin/telegram_bot/{page}/add/").status_code == 403
    assert admin_client.post(f"/admin/telegram_bot/telegramupdate/{update.pk}/delete/").status_code == 403


@pytest.mark.django_db
def test_a_forged_selection_is_told_apart_from_rows(admin_client: Any, failed_delivery: JobMessage):
    forged = {"action": "deliver_again", "_selected_action": ["x"]}
    page = admin_client.post("/admin/telegram_bot/jobmessage/", forged, follow=True)
    assert "There are no such rows." in page.content.decode()


@pytest.mark.django_db
def test_staff_can_have_a_failed_delivery_tried_again(admin_client: Any, failed_delivery: JobMessage):
    chosen = {"action": "deliver_again", "_selected_action": [failed_delivery.pk]}
    admin_client.post("/admin/telegram_bot/jobmessage/", chosen, follow=True)
    failed_delivery.refresh_from_db()
    assert failed_delivery.state == JobMessage.State.PENDING
    assert failed_delivery.next_attempt_at is not None


# --- The token ----------------------------------------------------------------------------------------------


def run_bot(
    telegram: BotApiServer, database_url: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "manage.py"), "run_bot"],
        env=os.environ | telegram.environment | {"DATABASE_URL": database_url} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        ("", "TELEGRAM_BOT_TOKEN is not set"),
        ("no token", "has to be digits, a colon and letters"),
        ("4242:revoked", "Telegram does not know TELEGRAM_BOT_TOKEN"),
    ],
)
def test_a_missing_or_wrong_token_is_said_clearly(database_url: str, token: str, complaint: str):
    with BotApiServer() as telegram:
        ended = run_bot(telegram, database_url, TELEGRAM_BOT_TOKEN=token)
    assert ended.returncode == 2
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_that_is_revoked_while_the_bot_runs_stops_it(own_bot: Bot, ada: int):
    process = own_bot.start()
    own_bot.answer_to("/start", sender=ada)
    own_bot.telegram.fail("getUpdates", 401, "Unauthorized", times=5)
    own_bot.telegram.say("/balance", sender=ada)
    assert process.wait(20) == 2
    assert "Telegram does not know TELEGRAM_BOT_TOKEN" in own_bot.log


def test_the_token_never_stands_in_the_log(own_bot: Bot, ada: int):
    own_bot.telegram.drop("getMe")
    own_bot.start(LOG_LEVEL="DEBUG")
    own_bot.telegram.drop("sendMessage")
    own_bot.answer_to("/start", sender=ada)
    own_bot.stop()
    assert "connected as @videos_test_bot" in own_bot.log
    assert own_bot.telegram.token.partition(":")[2] not in own_bot.log
