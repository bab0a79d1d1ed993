"""Messages without a command."""

from typing import Any

import pytest

from generation.models import GenerationJob
from telegram_bot.models import TelegramAccount
from tests.bot.bot_process import GROUP, NASTY, Bot, inbox_is_empty, job_of, people, the_status
from tests.processes import wait_for


def message_of(sender: int, **content: Any) -> dict[str, Any]:
    chat = {"id": sender, "type": "private", "first_name": "Ada"}
    return {"chat": chat, "from": {"id": sender, "is_bot": False, "first_name": "Ada"}} | content


def test_a_plain_message_in_private_is_a_prompt(bot: Bot, ada: int):
    asked = bot.telegram.say(NASTY, sender=ada)
    status = the_status(bot, ada)
    assert status.reply_to == asked
    assert f"Prompt: {NASTY}\n" in status.text
    assert job_of(ada).prompt == NASTY


def test_a_text_that_somebody_else_wrote_is_not_paid_for(bot: Bot, ada: int):
    origin = {"type": "hidden_user", "date": 1, "sender_user_name": "Grace"}
    bot.telegram.push_message(message_of(ada, text="look at this", forward_origin=origin))
    assert "/video <prompt>" in bot.next_message(ada).text


@pytest.mark.parametrize("command", ["/video a red fox", "/again", "/balance"])
def test_a_command_that_was_forwarded_is_not_carried_out(bot: Bot, ada: int, command: str):
    origin = {"type": "user", "date": 1, "sender_user": {"id": 5, "is_bot": False, "first_name": "Grace"}}
    bot.telegram.push_message(message_of(ada, text=command, forward_origin=origin))
    assert bot.next_message(ada).text.startswith("🤖 Commands")
    assert not GenerationJob.objects.exists()


def test_a_command_that_another_bot_wrote_for_its_sender_is_not_carried_out(bot: Bot, ada: int):
    other = {"id": 6, "is_bot": True, "first_name": "Foxes", "username": "foxes_bot"}
    bot.telegram.push_message(message_of(ada, text="/video a red fox", via_bot=other))
    assert bot.next_message(ada).text.startswith("🤖 Commands")
    assert not GenerationJob.objects.exists()


def test_posts_of_a_channel_in_its_group_are_no_requests(bot: Bot, ada: int):
    """Telegram names itself, 777000, as the sender of a post that it forwards to the channel's group."""
    channel = {"id": -100777, "type": "channel", "title": "News"}
    post = {
        "chat": {"id": GROUP, "type": "supergroup", "title": "Friends"},
        "from": {"id": 777000, "is_bot": False, "first_name": "Telegram"},
        "sender_chat": channel,
        "text": "/video@videos_test_bot a red fox",
    }
    origin = {"type": "channel", "date": 1, "chat": channel, "message_id": 1}
    bot.telegram.push_message(post | {"is_automatic_forward": True, "forward_origin": origin})
    bot.telegram.push_message(post)
    bot.telegram.push_message({key: value for key, value in post.items() if key != "sender_chat"})
    bot.telegram.say("/balance", sender=ada, chat=GROUP)
    wait_for(lambda: bot.telegram.shown(GROUP) and inbox_is_empty())
    assert not GenerationJob.objects.exists()
    assert not TelegramAccount.objects.filter(telegram_id=777000).exists()


def test_a_picture_gets_help_and_not_silence(bot: Bot, ada: int):
    photo = [{"file_id": "x", "file_unique_id": "y", "width": 1, "height": 1}]
    bot.telegram.push_message(message_of(ada, photo=photo))
    assert "/video <prompt>" in bot.next_message(ada).text


def test_other_bots_are_not_answered(bot: Bot, ada: int):
    bot.telegram.say("/start", sender=next(people), is_bot=True)
    bot.answer_to("/start", sender=ada)
    assert len(bot.telegram.called("sendMessage")) == 1
