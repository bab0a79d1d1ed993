"""The bot among several people: it answers when it is meant, on the wallet of the one who asks."""

import pytest

from generation.models import GenerationJob
from tests.bot.bot_process import GROUP, NASTY, Bot, inbox_is_empty, job_of, people, the_status, user_of
from tests.processes import wait_for


def test_in_a_group_a_command_is_answered_to_the_asker_from_their_own_wallet(bot: Bot, ada: int):
    asked = bot.telegram.say(f"/video@videos_test_bot {NASTY}", sender=ada, chat=GROUP)
    status = the_status(bot, GROUP)
    assert status.reply_to == asked
    assert f"\nPrompt: {NASTY}\n" in status.text
    assert job_of(ada).user == user_of(ada)


def test_in_a_group_the_bot_is_silent_when_it_is_not_meant(bot: Bot, ada: int):
    for text in ("hello all", "/nonsense", "/start@another_bot"):
        bot.telegram.say(text, sender=ada, chat=GROUP)
    bot.telegram.say("/balance", sender=ada, chat=GROUP)
    wait_for(lambda: bot.telegram.shown(GROUP) and inbox_is_empty())
    [answer] = bot.telegram.shown(GROUP)
    assert "in private" in answer.text


@pytest.mark.parametrize("command", ["/balance", "/history", "/settings", "/paysupport", "/login"])
def test_in_a_group_nothing_private_is_told(bot: Bot, ada: int, command: str):
    bot.telegram.say(command, sender=ada, chat=GROUP)
    wait_for(lambda: bot.telegram.shown(GROUP) and inbox_is_empty())
    [answer] = bot.telegram.shown(GROUP)
    assert "in private" in answer.text
    assert not any(character.isdigit() for character in answer.text)


@pytest.mark.parametrize("text", ["@videos_test_bot a red fox", "a red fox @Videos_Test_Bot"])
def test_in_a_group_a_text_with_its_name_is_a_prompt(bot: Bot, ada: int, text: str):
    asked = bot.telegram.say(text, sender=ada, chat=GROUP)
    assert the_status(bot, GROUP).reply_to == asked
    assert job_of(ada).prompt == "a red fox"


def test_in_a_group_its_bare_name_gets_help(bot: Bot, ada: int):
    bot.telegram.say("@videos_test_bot", sender=ada, chat=GROUP)
    assert "/video <prompt>" in bot.next_message(GROUP).text


def test_in_a_group_talk_about_a_video_is_none_of_its_business(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP)
    status = the_status(bot, GROUP)
    bot.telegram.say("what a nice fox", sender=ada, chat=GROUP, reply_to=status)
    bot.telegram.say("@videos_test_botanist hello", sender=ada, chat=GROUP)
    bot.telegram.say("/cancel", sender=ada, chat=GROUP)
    wait_for(lambda: GenerationJob.objects.filter(state="canceled").exists() and inbox_is_empty())
    assert GenerationJob.objects.count() == 1


def test_in_a_group_who_replies_again_pays_for_it(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP)
    status, grace = the_status(bot, GROUP), next(people)
    asked = bot.telegram.say("again", sender=grace, chat=GROUP, reply_to=status)
    assert job_of(grace).prompt == "a red fox"
    # The end of the test before may be told in this group only now.
    wait_for(lambda: [message for message in bot.telegram.shown(GROUP) if message.reply_to == asked])
    assert user_of(grace).credit_account.held == user_of(ada).credit_account.held == 50


def test_in_a_group_remix_asks_whoever_pressed_by_name(bot: Bot, ada: int):
    bot.telegram.say(f"/video {NASTY}", sender=ada, chat=GROUP)
    remix = f"remix:{job_of(ada).id.hex}"
    bot.telegram.press_data(the_status(bot, GROUP), remix, sender=ada, first_name="Ada <3 &")
    question = bot.next_message(GROUP, after=1)
    assert question.text.startswith("Ada <3 &: ✏️ Send the changed prompt")
    assert question.text.endswith(f"\n{NASTY}")
    asked = bot.telegram.say("at night", sender=ada, chat=GROUP, reply_to=question)
    assert bot.next_message(GROUP, after=2).reply_to == asked
    assert GenerationJob.objects.get(prompt="at night").remixed_from == GenerationJob.objects.get(
        prompt=NASTY
    )


def test_in_a_group_nobody_else_can_press_the_buttons_of_a_video(bot: Bot, ada: int):
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP)
    press = bot.telegram.press(the_status(bot, GROUP), "Cancel", sender=next(people))
    wait_for(lambda: press.words is not None)
    assert press.alert and press.words == "❌ This video is not yours, or it was deleted."
    assert job_of(ada).state == "queued"
    assert len(bot.telegram.shown(GROUP)) == 1
