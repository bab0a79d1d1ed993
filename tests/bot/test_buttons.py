"""The buttons below the bot's messages, and what a reply to a message does in their place."""

from collections.abc import Callable
from typing import Any

import pytest

from accounts import ledger
from generation import sharing
from generation.jobs import lifecycle
from generation.models import GenerationJob, Preset
from telegram_bot.models import JobMessage
from tests.bot.bot_process import (
    NASTY,
    Bot,
    inbox_is_empty,
    job_of,
    labels,
    people,
    the_status,
    the_video,
    user_of,
)
from tests.bot_api_server import Message
from tests.processes import wait_for


@pytest.fixture
def video(bot: Bot, ada: int, finish_job: Callable[..., Any]) -> Message:
    """Ada's finished video in her chat, with nothing else."""
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    status = the_status(bot, ada)
    finish_job(job_of(ada))
    video = the_video(bot, ada)
    wait_for(lambda: status.deleted)
    return video


def newest_job() -> GenerationJob:
    return GenerationJob.objects.order_by("created_at").last()


def wait_for_jobs(number: int, bot: Bot) -> None:
    wait_for(lambda: GenerationJob.objects.count() == number and inbox_is_empty(), message=bot.log)


def failed_job(bot: Bot, ada: int, start_job: Callable[..., Any]) -> Message:
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, token=attempt.pk, code="node_error", message="The GPU broke.", error="test"
    )
    wait_for(lambda: status.deleted, message=bot.log)
    return wait_for(lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("❌")], message=bot.log)[
        0
    ]


# --- Cancel -------------------------------------------------------------------------------------------------


def test_cancel_stops_a_video_that_waits(bot: Bot, ada: int):
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    status = the_status(bot, ada)
    press = bot.telegram.press(status, "Cancel", sender=ada)
    wait_for(lambda: status.text.startswith(f"🚫 Video canceled\nPrompt: {NASTY}\n"), message=bot.log)
    wait_for(lambda: press.words is not None, message=bot.log)
    assert (press.words, press.alert) == ("Canceled. No credits were deducted.", False)
    assert labels(status) == ["🔁 Again"]
    assert len(bot.telegram.shown(ada)) == 1
    assert user_of(ada).credit_account.balance == 500


def test_cancel_stops_a_video_that_is_being_made(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    assert lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=5)
    wait_for(lambda: "step 5 of 20" in status.text)
    bot.telegram.press(status, "Cancel", sender=ada)
    wait_for(lambda: status.text.startswith("🚫 Video canceled"), message=bot.log)
    assert job_of(ada).state == "canceled"


def test_cancel_of_a_video_that_is_being_stored_says_why_not(
    bot: Bot, ada: int, start_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    press = bot.telegram.press_data(status, f"cancel:{job_of(ada).id.hex}", sender=ada)
    wait_for(lambda: press.words is not None, message=bot.log)
    assert press.alert
    assert press.words == "❌ This video can no longer be canceled: it is being stored."


# --- Again --------------------------------------------------------------------------------------------------


def test_again_makes_the_same_video_with_another_seed(bot: Bot, ada: int, video: Message):
    first = job_of(ada)
    press = bot.telegram.press(video, "Again", sender=ada)
    status = the_status(bot, ada)
    assert status.reply_to == video.message_id
    assert f"Prompt: {NASTY}\n" in status.text
    wait_for_jobs(2, bot)
    again = newest_job()
    assert (again.prompt, again.preset) == (first.prompt, first.preset)
    assert again.seed != first.seed
    assert press.words == ""


@pytest.mark.parametrize("word", ["again", "Again!", "ещё раз"])
def test_a_reply_again_does_the_same(bot: Bot, ada: int, video: Message, word: str):
    asked = bot.telegram.say(word, sender=ada, reply_to=video)
    assert the_status(bot, ada).reply_to == asked
    wait_for_jobs(2, bot)
    assert newest_job().prompt == NASTY


def test_the_word_alone_in_a_private_chat_means_the_last_video(bot: Bot, ada: int, video: Message):
    bot.telegram.say("again", sender=ada)
    the_status(bot, ada)
    wait_for_jobs(2, bot)
    assert newest_job().prompt == NASTY


def test_the_word_alone_is_a_prompt_where_there_was_no_video(bot: Bot, ada: int):
    bot.telegram.say("again", sender=ada)
    assert job_of(ada).prompt == "again"


def test_again_without_credits_says_so_over_the_chat_and_leaves_no_message(
    bot: Bot, ada: int, video: Message
):
    ledger.adjust(user=user_of(ada), amount=-440, reason="Spent elsewhere", actor=user_of(ada))
    press = bot.telegram.press(video, "Again", sender=ada)
    wait_for(lambda: press.words is not None, message=bot.log)
    assert press.alert
    assert press.words == (
        "❌ Insufficient credits. You need 50 credits to generate a video. Your balance: 10 credits"
    )
    assert bot.telegram.shown(ada) == [video]


# --- Remix --------------------------------------------------------------------------------------------------


def test_remix_asks_for_the_changed_prompt_and_the_reply_is_it(bot: Bot, ada: int, video: Message):
    first = job_of(ada)
    press = bot.telegram.press(video, "Remix", sender=ada)
    question = bot.next_message(ada, after=1)
    assert question.asks_for_reply
    assert question.text.endswith(f"\n{NASTY}")
    wait_for(inbox_is_empty)
    assert press.words == ""
    bot.telegram.say("the same at night", sender=ada, reply_to=question)
    assert "Prompt: the same at night\n" in the_status(bot, ada).text
    wait_for_jobs(2, bot)
    remix = newest_job()
    assert (remix.prompt, remix.seed, remix.preset) == ("the same at night", first.seed, first.preset)
    assert remix.remixed_from == first


def test_a_reply_to_anything_else_is_a_prompt_of_its_own(bot: Bot, ada: int, video: Message):
    bot.telegram.say("a blue whale", sender=ada, reply_to=video)
    wait_for_jobs(2, bot)
    assert (newest_job().prompt, newest_job().remixed_from) == ("a blue whale", None)


# --- Retry --------------------------------------------------------------------------------------------------


def test_retry_tries_a_failed_video_once_more_however_often_it_is_pressed(
    bot: Bot, ada: int, start_job: Callable[..., Any]
):
    failure = failed_job(bot, ada, start_job)
    assert f"\nPrompt: {NASTY}\nError: The GPU broke.\n" in failure.text
    first = job_of(ada)
    for _ in range(2):
        bot.telegram.press(failure, "Retry", sender=ada)
    assert the_status(bot, ada).reply_to == failure.message_id
    wait_for_jobs(2, bot)
    assert (newest_job().prompt, newest_job().seed) == (first.prompt, first.seed)
    lifecycle.cancel(job=newest_job())
    late = bot.telegram.press(failure, "Retry", sender=ada)
    wait_for(lambda: late.words is not None)
    assert late.words == "You tried this one again already: see below."
    wait_for_jobs(2, bot)


# --- Share --------------------------------------------------------------------------------------------------


def test_share_sends_a_link_that_can_be_taken_back(bot: Bot, ada: int, video: Message):
    bot.telegram.press(video, "Share", sender=ada)
    message = bot.next_message(ada, after=1)
    job = job_of(ada)
    link = sharing.link_of(job)
    address = f"https://videos.example.org/s/{link.token}/"
    assert message.text == f"🔗 Anyone who has the link can watch the video.\nPrompt: {NASTY}"
    assert message.buttons[0] == [{"text": "▶️ Watch the video", "url": address}]
    assert message.buttons[1] == [{"text": "📋 Copy the link", "copy_text": {"text": address}}]
    bot.telegram.press(message, "Stop sharing", sender=ada)
    gone = f"🔗 The link does not work any more.\nPrompt: {NASTY}"
    wait_for(lambda: message.text == gone, message=bot.log)
    assert sharing.find(link.token) is None
    assert labels(message) == []


# --- What Telegram and others do with buttons ---------------------------------------------------------------


def test_a_button_nobody_knows_is_answered(bot: Bot, ada: int, video: Message):
    presses = [
        bot.telegram.press_data(video, data, sender=ada)
        for data in (
            "nonsense:1",
            "",
            ":",
            "again:",
            "again:\x00",
            "preset:nobody",
            "language:xx",
            "resend:1",
        )
    ]
    wait_for(lambda: all(press.words for press in presses), message=bot.log)
    assert all(press.alert for press in presses)
    assert bot.telegram.shown(ada) == [video]


def test_anothers_video_is_as_unknown_as_none(bot: Bot, ada: int, video: Message):
    eve = next(people)
    bot.answer_to("/start", sender=eve)
    [message] = bot.telegram.shown(eve)
    for name in ("again", "remix", "share", "unshare", "retry", "cancel", "resend"):
        press = bot.telegram.press_data(message, f"{name}:{job_of(ada).id.hex}", sender=eve)
        wait_for(lambda press=press: press.words is not None, message=bot.log)
        assert press.words == "❌ This video is not yours, or it was deleted."
    assert GenerationJob.objects.count() == 1
    assert sharing.link_of(job_of(ada)) is None


def test_a_press_that_can_no_longer_be_answered_is_carried_out_all_the_same(
    bot: Bot, ada: int, video: Message
):
    bot.telegram.fail("answerCallbackQuery", 400, "Bad Request: query is too old", times=2)
    bot.telegram.press(video, "Again", sender=ada)
    assert f"Prompt: {NASTY}\n" in the_status(bot, ada).text
    ledger.adjust(user=user_of(ada), amount=-400, reason="Spent elsewhere", actor=user_of(ada))
    bot.telegram.press(video, "Again", sender=ada)
    refusal = wait_for(
        lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("❌")], message=bot.log
    )
    assert "Insufficient credits." in refusal[0].text


def test_a_press_is_answered_though_messages_of_the_chat_wait(bot: Bot, ada: int, video: Message):
    for _ in range(7):
        bot.telegram.say("/help", sender=ada)
    press = bot.telegram.press(video, "Share", sender=ada)
    wait_for(lambda: press.words is not None)
    assert len(bot.telegram.shown(ada)) < 8


def test_a_press_that_is_brought_twice_makes_one_video(bot: Bot, ada: int, video: Message):
    bot.telegram.press(video, "Again", sender=ada)
    the_status(bot, ada)
    wait_for_jobs(2, bot)
    update = bot.telegram.last_update()
    bot.telegram.push(update, update_id=update["update_id"])
    bot.answer_to("/help", sender=ada)
    assert GenerationJob.objects.count() == 2


def test_a_preset_that_was_withdrawn_does_not_hinder_another_like_it(bot: Bot, ada: int, video: Message):
    Preset.objects.filter(name="standard").update(is_default=False)
    Preset.objects.filter(name="quick").update(enabled=False, is_default=False)
    bot.telegram.press(video, "Again", sender=ada)
    wait_for_jobs(2, bot)
    assert newest_job().preset.name == "standard"
    assert JobMessage.objects.count() == 2
