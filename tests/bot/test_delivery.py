"""Results that cannot be sent as they were asked for: topics, chats that are closed to the bot, and many at once."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client

from generation.jobs import lifecycle
from telegram_bot.models import ChatNotice, JobMessage
from telegram_bot.sending import outbox
from tests.bot.bot_process import (
    GROUP,
    Bot,
    inbox_is_empty,
    job_of,
    link_below,
    people,
    the_status,
    the_video,
)
from tests.processes import wait_for

TOPIC = 5
FAILED, SENT = JobMessage.State.FAILED, JobMessage.State.SENT


def delivery(bot: Bot, state: str) -> JobMessage:
    return wait_for(lambda: JobMessage.objects.filter(state=state).first(), message=bot.log)


@pytest.mark.parametrize("chat", [GROUP, None])
def test_a_video_comes_into_the_topic_in_which_it_was_asked_for(
    bot: Bot, ada: int, finish_job: Callable[..., Any], chat: int | None
):
    bot.telegram.say("/video a red fox", sender=ada, chat=chat, thread=TOPIC)
    status = the_status(bot, chat or ada)
    bot.telegram.hold("sendVideo")
    finish_job(job_of(ada))
    # Only an upload that takes a while is announced: the request would take the place of other deliveries.
    wait_for(lambda: bot.telegram.called("sendChatAction"), message=bot.log)
    assert bot.telegram.called("sendVideo")[0].at < bot.telegram.called("sendChatAction")[0].at
    bot.telegram.release()
    video = the_video(bot, chat or ada)
    assert (status.thread, video.thread) == (TOPIC, TOPIC)
    assert [call.parameters["message_thread_id"] for call in bot.telegram.called("sendChatAction")] == ["5"]
    bot.telegram.press(video, "Share", sender=ada)
    shared = wait_for(lambda: [m for m in bot.telegram.shown(chat or ada) if "the link" in m.text])[0]
    assert shared.thread == TOPIC


def test_again_in_a_private_topic_means_the_last_video_of_the_topic(bot: Bot, ada: int):
    bot.answer_to("/video a red fox", sender=ada, thread=TOPIC)
    bot.answer_to("/video a blue ball", sender=ada, thread=TOPIC + 1)
    bot.telegram.say("again", sender=ada, thread=TOPIC)
    status = bot.next_message(ada, after=2)
    assert (status.thread, "a red fox" in status.text) == (TOPIC, True)


def test_a_chain_of_replies_in_an_ordinary_group_is_no_topic(bot: Bot, ada: int):
    person = {"id": ada, "is_bot": False, "first_name": "Ada"}
    chat = {"id": GROUP, "type": "supergroup", "title": "Friends"}
    bot.telegram.push_message({"chat": chat, "from": person, "text": "/balance", "message_thread_id": 17})
    bot.next_message(GROUP)
    assert "message_thread_id" not in bot.telegram.called("sendMessage")[0].parameters


def test_a_video_comes_although_the_message_that_asked_for_it_in_a_topic_is_gone(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    asked = bot.telegram.say("/video a red fox", sender=ada, chat=GROUP, thread=TOPIC)
    the_status(bot, GROUP)
    bot.telegram.gone_messages.add(asked)
    finish_job(job_of(ada))
    video = the_video(bot, GROUP)
    assert (video.thread, video.reply_to) == (TOPIC, None)


def test_a_video_that_the_chat_does_not_take_any_more_is_a_link_in_the_status(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP, thread=TOPIC)
    status = the_status(bot, GROUP)
    bot.telegram.closed_topics.add((GROUP, TOPIC))
    finish_job(job_of(ada))
    wait_for(lambda: status.text.startswith("✅ Video generated!"), message=bot.log)
    assert Client().get(urlsplit(link_below(status)).path).status_code == 200
    assert "TOPIC_CLOSED" in delivery(bot, SENT).error.upper()
    assert not status.deleted


def test_a_failure_that_the_chat_does_not_take_any_more_is_said_in_the_status(
    bot: Bot, ada: int, start_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP)
    status = the_status(bot, GROUP)
    bot.telegram.muted_in.add(GROUP)
    attempt = start_job(job_of(ada))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk, token=attempt.pk, code="failed", message="No picture", error="test"
    )
    wait_for(lambda: status.text.startswith("❌ Video generation failed"), message=bot.log)
    delivery(bot, SENT)


def test_what_could_not_be_told_is_sent_when_the_person_writes_next(
    bot: Bot, ada: int, finish_job: Callable[..., Any], admin_client: Client
):
    """The topic is gone with all its messages, and the person writes in private; not to others, nor elsewhere."""
    bot.telegram.say("/video a red fox", sender=ada, chat=GROUP, thread=TOPIC)
    the_status(bot, GROUP).deleted = True
    bot.telegram.gone_topics.add((GROUP, TOPIC))
    finish_job(job_of(ada))
    assert "thread not found" in delivery(bot, FAILED).error
    page = admin_client.get("/admin/telegram_bot/jobmessage/?state__exact=failed").content.decode()
    assert "thread not found" in page
    bot.answer_to("/balance", sender=next(people))
    bot.telegram.say("/balance", sender=ada, chat=GROUP - 1)
    bot.next_message(GROUP - 1)
    wait_for(inbox_is_empty)
    assert JobMessage.objects.get().state == FAILED
    bot.telegram.say("/balance", sender=ada)
    the_video(bot, ada)
    delivery(bot, SENT)


def test_a_notice_to_a_person_who_blocked_the_bot_comes_after_their_next_message(
    bot: Bot, ada: int, settings: Any
):
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    bot.answer_to("/start", sender=ada)
    bot.telegram.blocked_by.add(ada)
    outbox.tell(chat_id=ada, text="Your Stars were given back.")
    wait_for(lambda: ChatNotice.objects.filter(state=FAILED).exists(), message=bot.log)
    bot.telegram.blocked_by.clear()
    bot.telegram.say("/balance", sender=ada)
    wait_for(lambda: "Your Stars were given back." in [m.text for m in bot.telegram.shown(ada)])


# --- Many at once, and kills ---


def test_many_notices_are_under_way_at_once_and_a_kill_repeats_one_at_most(
    own_bot: Bot, ada: int, settings: Any
):
    settings.TELEGRAM_BOT_TOKEN = own_bot.telegram.token
    own_bot.start()
    chats = range(ada, ada + 8)
    own_bot.telegram.known_chats |= set(chats)
    own_bot.telegram.hold("sendMessage")
    for chat in chats:
        outbox.tell(chat_id=chat, text="Hello")
    wait_for(lambda: len(own_bot.telegram.called("sendMessage")) == 8, message=own_bot.log)
    wait_for(lambda: ChatNotice.objects.filter(handed_over_at__isnull=False).count() >= 7)
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(lambda: not ChatNotice.objects.exclude(state=SENT).exists(), message=own_bot.log)
    assert len(own_bot.telegram.called("sendMessage")) <= 9
    assert all(own_bot.telegram.shown(chat) for chat in chats)


def test_a_notice_that_telegram_refused_for_now_is_sent_again(bot: Bot, ada: int, settings: Any):
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    bot.answer_to("/start", sender=ada)
    bot.telegram.fail("sendMessage", 429, "Too Many Requests: retry after 1", retry_after=1)
    bot.telegram.fail("sendMessage", 502, "Bad Gateway")
    outbox.tell(chat_id=ada, text="Hello")
    assert bot.next_message(ada, after=1).text == "Hello"
    wait_for(lambda: ChatNotice.objects.get().state == SENT)


def test_failures_are_told_side_by_side_and_a_kill_repeats_none(
    own_bot: Bot, ada: int, start_job: Callable[..., Any]
):
    own_bot.start()
    senders = range(ada, ada + 4)
    for sender in senders:
        own_bot.telegram.say("/video a red fox", sender=sender)
        the_status(own_bot, sender)
    wait_for(inbox_is_empty)
    own_bot.telegram.hold("sendMessage")
    for sender in senders:
        attempt = start_job(job_of(sender))
        lifecycle.attempt_failed(
            attempt_id=attempt.pk, token=attempt.pk, code="failed", message="No picture", error="test"
        )
    wait_for(lambda: len(own_bot.telegram.called("sendMessage")) == 8, message=own_bot.log)
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(lambda: JobMessage.objects.filter(state=SENT).count() == 4, message=own_bot.log)
    assert len(own_bot.telegram.called("sendMessage")) == 8


def test_deliveries_do_not_wait_for_the_answer_to_the_one_before(own_bot: Bot, ada: int, settings: Any):
    """With a round trip of half a second, 40 one after the other would take 20 of them; no time is asserted."""
    settings.TELEGRAM_BOT_TOKEN = own_bot.telegram.token
    own_bot.start()
    chats = range(ada, ada + 40)
    own_bot.telegram.known_chats |= set(chats)
    own_bot.telegram.latency = 0.5
    for chat in chats:
        outbox.tell(chat_id=chat, text="Hello")
    wait_for(lambda: ChatNotice.objects.filter(state=SENT).count() == 40, message=own_bot.log)
    calls = own_bot.telegram.called("sendMessage")
    at_once = max(sum(0 <= other.at - call.at < 0.5 for other in calls) for call in calls)
    assert at_once > 4
