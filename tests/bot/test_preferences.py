"""/presets, /settings, and the languages."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import translation

from generation.errors import PromptTooLong
from generation.models import GenerationJob, Preset
from telegram_bot.models import TelegramAccount
from tests.bot.bot_process import NASTY, Bot, inbox_is_empty, job_of, labels, the_status, the_video, user_of
from tests.bot_api_server import Message
from tests.processes import wait_for


def shown(bot: Bot, command: str, ada: int, **facts: str) -> Message:
    before = len(bot.telegram.shown(ada))
    bot.telegram.say(command, sender=ada, **facts)
    return bot.next_message(ada, after=before)


def test_presets_show_length_price_and_wait_and_mark_the_one_in_use(bot: Bot, ada: int):
    message = shown(bot, "/presets", ada)
    assert "✅ Quick\n2 seconds of video, 20 steps\n💰 50 credits · ⏱ ~30 seconds" in message.text
    assert "Standard\n6 seconds of video, 50 steps\n💰 250 credits · ⏱ ~4 minutes" in message.text
    assert labels(message) == ["✅ Quick · 50 credits", "Standard · 250 credits"]


@pytest.mark.parametrize("command", ["/presets", "/settings"])
def test_the_chosen_preset_is_used_for_every_video(bot: Bot, ada: int, command: str):
    message = shown(bot, command, ada)
    press = bot.telegram.press(message, "Standard", sender=ada)
    wait_for(lambda: "✅ Standard · 250 credits" in labels(message), message=bot.log)
    assert press.words == ""
    assert len(bot.telegram.shown(ada)) == 1
    assert "💰 Cost: 250 credits" in bot.answer_to("/video", sender=ada)
    bot.telegram.say("/video a red fox", sender=ada)
    the_status(bot, ada)
    assert (job_of(ada).preset.name, job_of(ada).cost) == ("standard", 250)


def test_pressing_the_same_preset_twice_changes_nothing(bot: Bot, ada: int):
    message = shown(bot, "/presets", ada)
    bot.telegram.press(message, "Quick", sender=ada)
    bot.telegram.press(message, "Quick", sender=ada)
    wait_for(lambda: inbox_is_empty() and all(p.words == "" for p in bot.telegram.presses.values()))
    assert len(bot.telegram.shown(ada)) == 1


def test_a_preset_that_staff_withdrew_is_refused_and_replaced_by_the_default(bot: Bot, ada: int):
    message = shown(bot, "/presets", ada)
    bot.telegram.press(message, "Standard", sender=ada)
    wait_for(lambda: TelegramAccount.objects.filter(preset__name="standard").exists())
    Preset.objects.filter(name="standard").update(enabled=False)
    bot.telegram.say("/video a red fox", sender=ada)
    assert job_of(ada).preset.name == "quick"
    press = bot.telegram.press_data(message, "preset:standard", sender=ada)
    wait_for(lambda: press.words)
    assert press.words == "❌ There is no such preset. On offer: quick."


# --- Languages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("telegram_is_in", "welcome"),
    [("ru", "👋 Добро пожаловать, Ada!"), ("ru-RU", "👋 Добро пожаловать, Ada!"), ("de", "👋 Welcome, Ada!")],
)
def test_the_bot_speaks_the_language_of_the_persons_telegram(
    bot: Bot, ada: int, telegram_is_in: str, welcome: str
):
    assert shown(bot, "/start", ada, language_code=telegram_is_in).text.startswith(welcome)


def test_every_person_is_spoken_to_in_their_own_language_also_about_their_video(bot: Bot, ada: int):
    russian = shown(bot, f"/video лиса {NASTY}", ada, language_code="ru")
    assert russian.text.startswith(f"🎬 Создаю видео...\nПромпт: лиса {NASTY}\n")
    assert shown(bot, "/balance", ada + 1).text.startswith("💰 Balance: 500 credits")
    bot.telegram.press(russian, "Отменить", sender=ada, language_code="ru")
    wait_for(lambda: russian.text.startswith(f"🚫 Видео отменено\nПромпт: лиса {NASTY}\n"), message=bot.log)
    assert labels(russian) == ["🔁 Ещё"]
    assert " · 0 · Отменено в Telegram" in shown(bot, "/balance", ada, language_code="ru").text


def test_a_video_and_what_can_be_done_with_it_in_russian(bot: Bot, ada: int, finish_job: Callable[..., Any]):
    bot.telegram.say(NASTY, sender=ada, language_code="ru")
    finish_job(job_of(ada))
    video = the_video(bot, ada)
    assert video.text == f"✅ Видео готово!\nПромпт: {NASTY}\nВремя: 28.3 с\nОсталось кредитов: 450"
    assert labels(video) == ["🔁 Ещё", "✏️ Ремикс", "🔗 Поделиться"]
    wait_for(lambda: len(bot.telegram.shown(ada)) == 1)
    answers = []
    for label in ("Ремикс", "Поделиться"):
        bot.telegram.press(video, label, sender=ada, language_code="ru")
        answers.append(bot.next_message(ada, after=len(answers) + 1).text)
    assert answers[0] == f"✏️ Отправьте изменённый промпт ответом на это сообщение. Было:\n{NASTY}"
    assert answers[1].endswith(f"\nПромпт: {NASTY}")
    history = shown(bot, "/history", ada, language_code="ru").text
    assert f"1. ✅ {NASTY}\nГотово · 50 кредитов" in history


def test_a_language_that_was_chosen_goes_before_that_of_telegram(bot: Bot, ada: int):
    message = shown(bot, "/settings", ada)
    assert labels(message)[-3:] == ["English", "Русский", "✅ As in Telegram"]
    bot.telegram.press(message, "Русский", sender=ada)
    wait_for(lambda: message.text.startswith("⚙️ Настройки"), message=bot.log)
    assert labels(message)[-2] == "✅ Русский"
    assert user_of(ada).language == "ru"
    assert "Баланс" in bot.answer_to("/balance", sender=ada, language_code="en")
    menu = bot.telegram.menus[str(ada)]
    assert menu[0]["description"] == bot.telegram.menus["ru"][0]["description"] == "Создать видео"
    bot.telegram.press(message, "Telegram", sender=ada)
    wait_for(lambda: message.text.startswith("⚙️ Settings"), message=bot.log)
    assert str(ada) not in bot.telegram.menus
    assert user_of(ada).language == ""


def test_refusals_are_said_in_it_too(bot: Bot, ada: int):
    with translation.override("ru"):
        words = PromptTooLong(n=200).message
    assert shown(bot, "/video " + "x" * 201, ada, language_code="ru").text == f"❌ {words}"
    assert not GenerationJob.objects.exists()
