"""The message that is the job, from the prompt to the video or to why there is none."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generation.jobs import lifecycle, submission
from generation.models import GpuNode
from telegram_bot.models import JobMessage, TelegramUpdate
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
from tests.processes import wait_for


def test_a_prompt_becomes_a_video_in_the_chat(bot: Bot, ada: int, finish_job: Callable[..., Any], clip: Path):
    asked = bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    assert status.text == (
        "🎬 Generating video...\nPrompt: a red fox\n⏱ This takes ~30 seconds. Please wait..."
    )
    assert status.reply_to == asked
    assert labels(status) == ["✖️ Cancel"]
    finish_job(job_of(ada))
    video = the_video(bot, ada)
    assert video.text == "✅ Video generated!\nPrompt: a red fox\nTime: 28.3s\nCredits remaining: 450"
    assert video.video == clip.read_bytes()
    assert video.reply_to == asked
    assert labels(video) == ["🔁 Again", "✏️ Remix", "🔗 Share"]
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
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    for step in (5, 12):
        assert lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=step)
    wait_for(lambda: "▓▓▓▓▓▓░░░░ step 12 of 20 · about " in status.text, message=bot.log)
    assert f"Prompt: {NASTY}\n" in status.text
    assert labels(status) == ["✖️ Cancel"]
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    wait_for(lambda: "almost done" in status.text)
    assert labels(status) == []
    edits = [call.at for call in bot.telegram.called("editMessageText")]
    assert all(later - earlier >= 1.4 for earlier, later in itertools.pairwise(edits))


def test_the_status_message_says_the_place_in_line_and_the_wait(bot: Bot, ada: int, node: GpuNode):
    bot.telegram.say("/video the first", sender=ada)
    the_status(bot, ada)
    grace, edsger = next(people), next(people)
    for sender in (grace, edsger):
        bot.telegram.say("/video later", sender=sender)
        the_status(bot, sender)
    status = the_status(bot, edsger)
    assert "\n\n⏳ 3rd in line · about " in status.text
    lifecycle.cancel(job=job_of(ada))
    wait_for(lambda: "\n\n⏳ 2nd in line" in status.text, message=bot.log)


def test_the_status_message_says_when_no_gpu_is_there(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada)
    assert the_status(bot, ada).text.endswith("Please wait...\n\n⏳ Waiting for a GPU to be free")


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


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_video_that_overtakes_its_status_message_removes_it_unless_its_reader_did(
    bot: Bot, ada: int, finish_job: Callable[..., Any], by_hand: bool
):
    bot.telegram.hold("sendMessage")
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: JobMessage.objects.filter(state="sent", next_attempt_at=None).exists())
    status.deleted = by_hand
    bot.telegram.release()
    wait_for(lambda: status.deleted and inbox_is_empty(), message=bot.log)
    assert not TelegramUpdate.objects.filter(state=TelegramUpdate.State.FAILED).exists()


def test_a_video_its_owner_deleted_before_it_was_sent_is_not_sent(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.drop("sendVideo")
    lifecycle.delete(job=finish_job(job_of(ada)))
    wait_for(lambda: status.deleted, message=bot.log)
    assert not bot.telegram.shown(ada)


def test_a_failure_says_why_and_that_nothing_was_charged(bot: Bot, ada: int, start_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    attempt = start_job(job_of(ada))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk,
        token=attempt.pk,
        code="timed_out",
        message="Video generation timed out (>90s)",
        error="test",
    )
    wait_for(lambda: status.deleted, message=bot.log)
    [message] = bot.telegram.shown(ada)
    assert message.text == (
        "❌ Video generation failed\nPrompt: a red fox\nError: Video generation timed out (>90s)\n"
        "No credits were deducted."
    )
    assert labels(message) == ["🔁 Retry"]
    assert user_of(ada).credit_account.balance == 500


def test_a_failure_that_says_itself_that_nothing_was_charged_says_it_once(
    bot: Bot, ada: int, start_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    attempt = start_job(job_of(ada))
    words = "Video generated but download failed. No credits were deducted. Please try again."
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, token=attempt.pk, code="download_failed", message=words, error="test"
    )
    message = wait_for(lambda: [m for m in bot.telegram.shown(ada) if m.text.startswith("❌")])[0]
    assert message.text.endswith(f"\nError: {words}")


def test_a_job_from_elsewhere_is_not_delivered_here(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.answer_to("/start", sender=ada)
    finish_job(submission.submit(user=user_of(ada), prompt="on the web", source="web"))
    bot.answer_to("/balance", sender=ada)
    assert not bot.telegram.called("sendVideo")
