"""Faults of Telegram: odd updates, errors, lost connections, blocked chats."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from django.db.models.functions import Now
from django.test import Client

from generation.jobs import lifecycle, stored_files
from generation.models import GenerationJob, Preset
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate
from telegram_bot.sending.delivery import LINK_AFTER
from tests.bot.bot_process import (
    NASTY,
    Bot,
    inbox_is_empty,
    job_of,
    labels,
    link_below,
    the_status,
    the_video,
)
from tests.clips import FACTS, FILES
from tests.processes import wait_for
from tests.staff import sent


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
    assert bot.next_message(ada, after=1).text.startswith("💰 Balance: 500 credits")


def test_an_error_that_nobody_thought_of_is_apologised_for_and_can_be_mended(
    bot: Bot, ada: int, admin_client: Client
):
    Preset.objects.update(fps=0)
    words = "⚠️ Something went wrong here, and we were told. Please try again in a moment."
    assert bot.answer_to("/presets", sender=ada) == words
    failed = wait_for(lambda: TelegramUpdate.objects.filter(state="failed").first(), message=bot.log)
    assert "ZeroDivisionError" in failed.error
    Preset.objects.update(fps=8)
    form = sent(reason="Mended", action="handle_again", _selected_action=[failed.pk])
    admin_client.post("/admin/telegram_bot/telegramupdate/", form)
    assert bot.next_message(ada, after=1).text.startswith("🎚 Presets")


def test_too_many_requests_is_waited_out(bot: Bot, ada: int):
    bot.telegram.fail("sendMessage", 429, "Too Many Requests: retry after 1", retry_after=1)
    assert bot.answer_to("/balance", sender=ada).startswith("💰 Balance: 500 credits")
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
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    the_status(bot, ada)
    bot.telegram.fail("sendVideo", 413, "Request Entity Too Large")
    finish_job(job_of(ada))
    message = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("✅")], message=bot.log
    )[0]
    address = link_below(message)
    assert address.startswith("https://videos.example.org/telegram/video/")
    assert Client().get(urlsplit(address).path).status_code == 200
    assert "Credits remaining: 450" in message.text
    assert f"\nPrompt: {NASTY}\n" in message.text


def test_a_video_above_fifty_megabytes_comes_as_a_link(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    attempt = start_job(job_of(ada))
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk, generation_ms=1000)
    stored_files.announce(FILES)
    large = replace(FACTS, size_bytes=51 * 1000 * 1000)
    assert lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=large)
    message = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("✅")], message=bot.log
    )[0]
    assert link_below(message).startswith("https://videos.example.org/telegram/video/")
    assert not bot.telegram.called("sendVideo")


def test_after_repeated_failures_a_link_is_sent(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    wait_for(inbox_is_empty)
    JobMessage.objects.update(attempts=LINK_AFTER - 2)
    bot.telegram.fail("sendVideo", 500, "Internal Server Error", times=100)
    finish_job(job_of(ada))
    wait_for(lambda: JobMessage.objects.get().attempts == LINK_AFTER - 1, message=bot.log)
    assert not [m for m in bot.telegram.shown(ada) if "▶️ Watch the video" in labels(m)]
    JobMessage.objects.update(next_attempt_at=Now())
    wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if "▶️ Watch the video" in labels(m)], message=bot.log
    )
    assert len(bot.telegram.called("sendVideo")) == 2


def test_a_chat_that_blocked_the_bot_is_not_tried_again_before_its_person_writes(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    bot.telegram.blocked_by.add(ada)
    finish_job(job_of(ada))
    row = wait_for(lambda: JobMessage.objects.filter(state=JobMessage.State.FAILED).first(), message=bot.log)
    assert "blocked by the user" in row.error
    assert row.next_attempt_at is None
    assert TelegramAccount.objects.get(telegram_id=ada).blocked_at is not None
    assert len(bot.telegram.called("sendVideo")) == 1
    bot.telegram.blocked_by.clear()
    bot.telegram.say("/balance", sender=ada)
    the_video(bot, ada)
    assert TelegramAccount.objects.get(telegram_id=ada).blocked_at is None


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
