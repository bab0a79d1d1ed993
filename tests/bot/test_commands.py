"""Answers and refusals of each command."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from accounts import ledger
from accounts.models import User, UserLimits
from accounts.staff import operations
from accounts.staff.actor import Actor
from generation.models import BlockedPrompt, GenerationJob, GpuNode
from telegram_bot import commands
from telegram_bot.models import TelegramAccount
from telegram_bot.receiving import routes
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


@pytest.mark.parametrize("text", ["/help", "/help@videos_test_bot", "/", "/nonsense", "/VIDEOS", "/vidéo x"])
def test_help_is_what_everything_unknown_gets(bot: Bot, ada: int, text: str):
    answer = bot.answer_to(text, sender=ada)
    assert "/video <prompt> - Generate AI video (50 credits, ~30s)" in answer
    assert "/balance" in answer


def test_start_welcomes_and_opens_an_account_with_credits(bot: Bot, ada: int):
    answer = bot.answer_to("/start", sender=ada, first_name="Ada <3", username="ada_l")
    assert "Welcome, Ada <3!" in answer
    assert "Balance: 500 credits" in answer
    account = TelegramAccount.objects.select_related("user").get(telegram_id=ada)
    assert (account.user.username, account.username, account.first_name) == (f"tg_{ada}", "ada_l", "Ada <3")
    assert not account.user.has_usable_password()


def test_the_sample_of_start_is_made_by_one_tap(bot: Bot, ada: int):
    bot.telegram.say("/start", sender=ada)
    welcome = bot.next_message(ada)
    assert labels(welcome) == ["🎬 Make it · 50 credits"]
    bot.telegram.press(welcome, "Make it", sender=ada)
    assert the_status(bot, ada).reply_to == welcome.message_id
    assert f"/video {job_of(ada).prompt}\n" in welcome.text


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


def test_balance_shows_what_is_free_and_held_and_how_it_came_to_that(bot: Bot, ada: int):
    answer = bot.answer_to("/balance", sender=ada).splitlines()
    assert answer[:2] == ["💰 Balance: 500 credits", ""]
    assert answer[2].endswith(" · +500 · Welcome credits")
    bot.answer_to("/video a red fox", sender=ada)
    answer = bot.answer_to("/balance", sender=ada).splitlines()
    assert answer[:3] == ["💰 Balance: 450 credits", "50 credits held for videos being made", ""]
    assert answer[3].endswith(" · −50 · Held for a video")
    assert len(answer) == 5


def test_balance_shows_the_last_five_lines_one_for_each_video(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    finish_job(job_of(ada))
    the_video(bot, ada)
    lines = bot.answer_to("/balance", sender=ada).splitlines()[2:]
    assert [line.partition(" · ")[2] for line in lines] == ["−50 · Video completed", "+500 · Welcome credits"]
    for number in range(6):
        ledger.grant(user=user_of(ada), amount=number + 1, reason=f"Gift {number} <3")
    lines = bot.answer_to("/balance", sender=ada).splitlines()[2:]
    assert [line.partition(" · ")[2] for line in lines] == [
        f"+{n + 1} · Gift {n} <3" for n in (5, 4, 3, 2, 1)
    ]


def test_cancel_stops_the_newest_video_and_gives_the_credits_back(bot: Bot, ada: int):
    assert "nothing to cancel" in bot.answer_to("/cancel", sender=ada)
    bot.answer_to("/video the first", sender=ada)
    bot.answer_to(f"/video {NASTY}", sender=ada)
    bot.telegram.say("/cancel", sender=ada)
    wait_for(lambda: GenerationJob.objects.filter(prompt=NASTY, state="canceled").exists())
    assert GenerationJob.objects.get(prompt="the first").state == "queued"
    assert user_of(ada).credit_account.balance == 450
    # The answer to /cancel, and the status message that turns into the same words.
    words = f"🚫 Video canceled\nPrompt: {NASTY}\nNo credits were deducted."
    wait_for(lambda: [message.text for message in bot.telegram.shown(ada)].count(words) == 2, message=bot.log)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_command_is_answered_in_the_persons_language(bot: Bot, language: str):
    assert commands  # importing them registers what they answer
    assert routes.COMMANDS.keys() >= {
        "start", "help", "video", "balance", "history", "cancel", "presets", "settings", "link", "login", "buy",
        "paysupport", "terms",
    }  # fmt: skip
    senders = {name: next(people) for name in routes.COMMANDS}
    for name, sender in senders.items():
        bot.telegram.say(f"/{name}", sender=sender, language_code=language)
    for name, sender in senders.items():
        answer = bot.next_message(sender).text
        assert bool(re.search("[а-я]", answer)) == (language == "ru"), f"/{name}: {answer}"


def test_the_menu_of_commands_is_set(bot: Bot):
    wait_for(lambda: len(bot.telegram.menus) == 2)
    names = {language: [entry["command"] for entry in menu] for language, menu in bot.telegram.menus.items()}
    assert names[""] == names["ru"] == [
        "video", "balance", "history", "cancel", "presets", "settings", "buy", "link", "login", "paysupport",
        "terms", "help", "start",
    ]  # fmt: skip
    # Nothing is for sale: the menu promises no purchase.
    assert {"command": "buy", "description": "Get credits"} in bot.telegram.menus[""]


def test_telegram_shows_what_the_bot_does_before_the_first_message(bot: Bot):
    wait_for(lambda: len(bot.telegram.descriptions) == 4, message=bot.log)
    assert "get a video of it in this chat" in bot.telegram.descriptions["long", ""]
    assert re.search("[а-я]", bot.telegram.descriptions["long", "ru"])
    assert re.search("[а-я]", bot.telegram.descriptions["short", "ru"])


def test_a_description_that_its_operator_wrote_stays(own_bot: Bot):
    own_bot.telegram.descriptions["long", ""] = "Ours"
    own_bot.start()
    wait_for(lambda: len(own_bot.telegram.descriptions) == 4, message=own_bot.log)
    assert own_bot.telegram.descriptions["long", ""] == "Ours"


def test_a_sample_is_one_that_the_demonstration_model_can_draw(bot: Bot, ada: int, node: GpuNode):
    GpuNode.objects.update(backend="CogVideoX-tiny")
    bot.telegram.say("/start", sender=ada)
    welcome = bot.next_message(ada)
    assert "/video A golden star flying right at night\n" in welcome.text
    assert "A golden star flying right at night" in bot.answer_to("/video", sender=ada)
    assert "A golden star flying right at night" in bot.answer_to("/history", sender=ada)
    GpuNode.objects.update(backend="CogVideoX-5B")
    bot.telegram.press(welcome, "Make it", sender=ada)
    assert "Prompt: A golden star flying right at night\n" in the_status(bot, ada).text


@pytest.mark.parametrize("command", ["/balance", "/history"])
def test_times_are_in_the_zone_of_the_reader(
    bot: Bot, ada: int, finish_job: Callable[..., Any], command: str
):
    """Telegram knows the zone, and writes the time itself; a server older than that gets the text."""
    bot.telegram.say("/video a red fox", sender=ada)
    job = finish_job(job_of(ada))
    the_video(bot, ada)
    wait_for(lambda: len(bot.telegram.shown(ada)) == 1 and inbox_is_empty(), message=bot.log)
    bot.telegram.fail(
        "sendMessage", 400, 'Bad Request: can\'t parse entities: Unsupported start tag "tg-time"'
    )
    bot.answer_to(command, sender=ada)
    first, second = [call.parameters["text"] for call in bot.telegram.called("sendMessage")][-2:]
    when = re.search(r'<tg-time unix="(\d+)" format="dt">[^<]* UTC</tg-time>', first)
    assert when and abs(int(when[1]) - job.created_at.timestamp()) < 60
    assert second == re.sub("</?tg-time[^>]*>", "", first)


# --- Refusals ---


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("x" * 201, "❌ Prompt too long. Maximum 200 characters."),
        ("a\x00b", "❌ The prompt has characters that cannot be stored."),
        ("a\ud800b", "❌ The prompt has characters that cannot be stored."),
        ("\u200b\u2060\u3164\u2800\ufe0f\u0301\U000e0041", "❌ Please write what the video should show."),
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


def test_limits_and_rules_are_said_in_words(bot: Bot, ada: int):
    BlockedPrompt.objects.create(text="dragon", explanation="No <dragons> here.")
    answer = bot.answer_to("a dragon", sender=ada)
    assert answer == "❌ No <dragons> here. No credits were deducted."
    limits = UserLimits.objects.create(user=user_of(ada), concurrent_jobs=1)
    bot.answer_to("a red fox", sender=ada)
    answer = bot.answer_to("another", sender=ada)
    assert answer == "⏳ You may have 1 video made at a time. Please wait until it is finished."
    limits.concurrent_jobs, limits.daily_clips = None, 1
    limits.save()
    answer = bot.answer_to("another", sender=ada)
    assert answer == "⏳ You may have 1 video made in 24 hours. The next one is possible in 24 hours."


def test_a_banned_person_is_told_so(bot: Bot, ada: int):
    bot.answer_to("/start", sender=ada)
    User.objects.filter(pk=user_of(ada).pk).update(is_active=False)
    assert bot.answer_to("/video a red fox", sender=ada) == "❌ This account is not active."


def test_a_banned_person_is_told_why(bot: Bot, ada: int, settings: Any, staff: Any):
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    bot.answer_to("/start", sender=ada)
    operations.ban(user=user_of(ada), actor=Actor(staff, address="10.0.0.1"), reason="Spam <3")
    why = "This account is banned: Spam <3"
    assert bot.next_message(ada, after=1).text == f"🚫 {why}"
    assert bot.answer_to("/start", sender=ada) == why
    assert bot.answer_to("/login", sender=ada) == why
    assert bot.answer_to("/video a red fox", sender=ada) == f"❌ {why}"
