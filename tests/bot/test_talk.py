"""Messages without a command."""

from typing import Any

from tests.bot.bot_process import NASTY, Bot, job_of, people, the_status


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


def test_a_picture_gets_help_and_not_silence(bot: Bot, ada: int):
    photo = [{"file_id": "x", "file_unique_id": "y", "width": 1, "height": 1}]
    bot.telegram.push_message(message_of(ada, photo=photo))
    assert "/video <prompt>" in bot.next_message(ada).text


def test_other_bots_are_not_answered(bot: Bot, ada: int):
    bot.telegram.say("/start", sender=next(people), is_bot=True)
    bot.answer_to("/start", sender=ada)
    assert len(bot.telegram.called("sendMessage")) == 1
