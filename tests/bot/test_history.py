"""/history: the last videos, and having them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from generation.jobs import lifecycle, submission
from generation.models import GenerationJob
from telegram_bot.models import JobMessage
from tests.bot.bot_process import NASTY, Bot, job_of, labels, the_status, the_video, user_of
from tests.bot_api_server import Message
from tests.processes import wait_for


def history_of(bot: Bot, ada: int) -> Message:
    before = len(bot.telegram.shown(ada))
    bot.telegram.say("/history", sender=ada)
    return bot.next_message(ada, after=before)


def videos_in(bot: Bot, chat: int) -> list[Message]:
    return [message for message in bot.telegram.shown(chat) if message.video]


def test_history_shows_the_last_five_with_what_became_of_them(bot: Bot, ada: int):
    assert "no videos yet" in bot.answer_to("/history", sender=ada)
    for number in range(6):
        bot.answer_to(f"/video fox number {number} <b>", sender=ada)
    lifecycle.cancel(job=GenerationJob.objects.get(prompt="fox number 4 <b>"))
    answer = history_of(bot, ada)
    assert "fox number 0" not in answer.text
    assert "1. ⏳ fox number 5 <b>\nQueued" in answer.text
    assert "2. 🚫 fox number 4 <b>\nCanceled" in answer.text
    assert "5. ⏳ fox number 1 <b>" in answer.text
    assert labels(answer) == []


def test_a_video_is_sent_again_without_an_upload(
    bot: Bot, ada: int, finish_job: Callable[..., Any], clip: Path
):
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: JobMessage.objects.filter(state="sent", next_attempt_at=None).exists())
    answer = history_of(bot, ada)
    assert f"1. ✅ {NASTY}\nCompleted · 50 credits · " in answer.text
    press = bot.telegram.press(answer, "1", sender=ada)
    again = wait_for(lambda: videos_in(bot, ada)[1:], message=bot.log)[0]
    assert again.video == clip.read_bytes()
    assert again.text == f"✅ Video generated!\nPrompt: {NASTY}\nTime: 28.3s\nCredits remaining: 450"
    assert labels(again) == ["🔁 Again", "✏️ Remix", "🔗 Share"]
    assert press.words == ""
    assert isinstance(bot.telegram.called("sendVideo")[1].parameters["video"], str)
    assert GenerationJob.objects.count() == 1


def test_a_video_that_was_made_on_the_web_is_uploaded(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.answer_to("/start", sender=ada)
    finish_job(submission.submit(user=user_of(ada), prompt="on the web", source="web"))
    press = bot.telegram.press(history_of(bot, ada), "1", sender=ada)
    assert the_video(bot, ada).text.startswith("✅ Video generated!\nPrompt: on the web\n")
    assert press.words == "The video is on its way."
    wait_for(lambda: JobMessage.objects.filter(state="sent").exists())
    assert JobMessage.objects.get().file_id


def test_a_file_that_telegram_forgot_is_uploaded_anew(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: JobMessage.objects.filter(state="sent", next_attempt_at=None).exists())
    bot.telegram.files.clear()
    bot.telegram.press(history_of(bot, ada), "1", sender=ada)
    wait_for(lambda: JobMessage.objects.get().file_id in bot.telegram.files, message=bot.log)
    assert len(videos_in(bot, ada)) == 2


def test_a_video_that_is_deleted_meanwhile_is_not_sent(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say("/video a red fox", sender=ada)
    job = finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: JobMessage.objects.filter(state="sent", next_attempt_at=None).exists())
    answer = history_of(bot, ada)
    lifecycle.delete(job=job)
    press = bot.telegram.press(answer, "1", sender=ada)
    wait_for(lambda: press.words)
    assert press.words == "❌ This video is not yours, or it was deleted."
    assert len(bot.telegram.called("sendVideo")) == 1


def test_a_live_job_keeps_its_status_message_when_history_is_asked_for(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    press = bot.telegram.press_data(status, f"resend:{job_of(ada).id.hex}", sender=ada)
    wait_for(lambda: press.words)
    assert press.words == "❌ This video is not ready."
    assert labels(status) == ["✖️ Cancel"]
