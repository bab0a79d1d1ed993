"""The process: kills, stops, a second instance, a wrong token."""

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from generation.database import listen_parameters
from generation.models import GenerationJob
from telegram_bot import service
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate
from telegram_bot.receiving import updates
from telegram_bot.sending.client import connect_to
from tests.bot.bot_process import NASTY, Bot, inbox_is_empty, job_of, people, the_status, the_video, user_of
from tests.bot_api_server import BotApiServer
from tests.environment import REPOSITORY
from tests.processes import wait_for


def test_commands_survive_kill_9_and_become_one_job_each(own_bot: Bot, ada: int):
    own_bot.start()
    senders = [next(people) for _ in range(12)]
    for number, sender in enumerate(senders):
        own_bot.telegram.say("/video a red fox", sender=sender)
        if number % 4 == 3:
            wait_for(lambda: own_bot.telegram.called("sendMessage"))
            own_bot.kill()
            own_bot.start()
    for sender in senders:
        the_status(own_bot, sender)
    wait_for(inbox_is_empty, message=own_bot.log)
    assert sorted(TelegramAccount.objects.values_list("telegram_id", flat=True)) == senders
    assert GenerationJob.objects.count() == len(senders)
    # A kill between a send and its mark repeats one message, and there were three.
    assert len(own_bot.telegram.called("sendMessage")) <= len(senders) + 3 * 4


def test_a_job_that_ends_while_the_bot_is_down_is_delivered_when_it_is_back(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.kill()
    finish_job(job_of(ada))
    own_bot.start()
    the_video(own_bot, ada)
    wait_for(lambda: status.deleted)


def test_a_kill_in_the_middle_of_an_upload_loses_nothing(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.drop("sendVideo", times=50)
    finish_job(job_of(ada))
    wait_for(lambda: own_bot.telegram.called("sendVideo"))
    own_bot.kill()
    own_bot.telegram.heal()
    own_bot.start()
    the_video(own_bot, ada)
    assert status.video


def test_a_video_that_may_have_arrived_before_a_kill_is_not_sent_again_but_takes_the_place_of_its_status(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any], clip: Path
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.hold("sendVideo")
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(lambda: JobMessage.objects.get().state == JobMessage.State.SENT, message=own_bot.log)
    assert len(own_bot.telegram.called("sendVideo")) == 1
    assert status.video == clip.read_bytes() and not status.deleted
    assert status.text.startswith("✅ Video generated!")
    assert JobMessage.objects.get().file_id
    assert user_of(ada).credit_account.balance == 450


def test_a_video_whose_answer_was_lost_takes_the_place_of_its_status(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say(f"/video {NASTY}", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.drop("sendVideo", after_doing=True)
    finish_job(job_of(ada))
    wait_for(lambda: status.video, message=bot.log)
    assert f"\nPrompt: {NASTY}\n" in status.text
    assert len(bot.telegram.called("sendVideo")) == 1


def test_a_video_that_may_have_arrived_is_sent_again_where_its_status_is_gone(
    bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    bot.telegram.say("/video a red fox", sender=ada)
    status = the_status(bot, ada)
    bot.telegram.drop("sendVideo", after_doing=True)
    status.deleted = True
    finish_job(job_of(ada))
    wait_for(lambda: len(bot.telegram.called("sendVideo")) == 2, message=bot.log)
    wait_for(lambda: JobMessage.objects.get().state == JobMessage.State.SENT)


def test_answers_leave_one_after_the_other_so_that_a_kill_repeats_one_at_most(own_bot: Bot, ada: int):
    own_bot.start()
    own_bot.telegram.hold("sendMessage")
    for sender in range(ada, ada + 5):
        own_bot.telegram.say("/balance", sender=sender)
    wait_for(lambda: TelegramUpdate.objects.count() == 5)
    wait_for(lambda: own_bot.telegram.called("sendMessage"))
    own_bot.kill()
    own_bot.telegram.release()
    own_bot.start()
    wait_for(inbox_is_empty, message=own_bot.log)
    assert len(own_bot.telegram.called("sendMessage")) == 6


def test_a_message_that_was_refused_keeps_no_other_waiting(bot: Bot, ada: int):
    bot.telegram.fail("sendMessage", 500, "Internal Server Error", times=2)
    bot.telegram.say("/balance", sender=ada)
    wait_for(lambda: bot.telegram.called("sendMessage"))
    bot.telegram.say("/balance", sender=ada + 1)
    wait_for(lambda: bot.telegram.shown(ada + 1) and bot.telegram.shown(ada), message=bot.log)


def test_sigterm_lets_an_upload_finish(own_bot: Bot, ada: int, finish_job: Callable[..., Any]):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    the_status(own_bot, ada)
    wait_for(inbox_is_empty)
    own_bot.telegram.hold("sendVideo")
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    own_bot.process.terminate()
    wait_for(lambda: "stopping" in own_bot.log)
    own_bot.telegram.release()
    assert own_bot.process.wait(10) == 0
    assert JobMessage.objects.get().state == JobMessage.State.SENT


def test_sigterm_stops_it_within_ten_seconds(own_bot: Bot, ada: int):
    own_bot.start()
    own_bot.answer_to("/start", sender=ada)
    began = time.monotonic()
    assert own_bot.stop() == 0
    assert time.monotonic() - began < 10
    assert "the bot has stopped" in own_bot.log


def test_a_second_instance_stands_by_until_the_first_is_gone(own_bot: Bot, ada: int):
    first = own_bot.start()
    with (own_bot.processes.logs / "second.log").open("ab") as log:
        second = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "manage.py"), "run_bot"],
            env=own_bot.processes.environment | own_bot.telegram.environment,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "standing by" in (own_bot.processes.logs / "second.log").read_text())
        own_bot.answer_to("/start", sender=ada)
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        own_bot.answer_to("/balance", sender=ada)
        assert second.poll() is None
        assert not [call for call in own_bot.telegram.called("getUpdates") if "409" in str(call.parameters)]
    finally:
        second.terminate()
        second.wait(15)


def test_it_goes_on_after_its_database_connections_are_cut(
    own_bot: Bot, ada: int, finish_job: Callable[..., Any]
):
    own_bot.start()
    own_bot.telegram.say("/video a red fox", sender=ada)
    the_status(own_bot, ada)
    wait_for(inbox_is_empty)  # cut before the message is written down, it would be sent once more
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.fetchone()[0]
        assert own_bot.answer_to("/balance", sender=ada).startswith("💰 Balance: 450 credits")
        wait_for(inbox_is_empty)
    finish_job(job_of(ada))
    the_video(own_bot, ada)
    assert own_bot.process.poll() is None


@pytest.mark.django_db(transaction=True)
def test_a_request_is_not_disturbed_in_its_clean_up_when_the_lock_is_lost(monkeypatch: pytest.MonkeyPatch):
    """httpx counts the connection of a request that is cancelled twice as in use for ever."""
    steps: list[str] = []

    @async_to_sync  # with the connection of this thread
    async def work(telegram: BotApiServer) -> None:
        polling = asyncio.Event()

        async def poll(*_: object) -> None:
            polling.set()
            try:
                await asyncio.Event().wait()
            finally:
                steps.append("cut off")
                await asyncio.sleep(0.05)
                steps.append("cleaned up")

        async def lose_the_lock(*_: object) -> None:
            await polling.wait()
            raise psycopg.OperationalError("the connection is lost")

        monkeypatch.setattr(updates, "poll_for_ever", poll)
        monkeypatch.setattr(service, "_watch", lose_the_lock)
        client = connect_to(token=telegram.token, base_url=telegram.base_url)
        async with client, await psycopg.AsyncConnection.connect(**listen_parameters()) as lock:
            with pytest.raises(psycopg.OperationalError, match="the connection is lost"):
                await service._serve(client, lock)

    with BotApiServer() as telegram:
        work(telegram)
    gc.collect()  # listeners that were cut off while they connected
    assert steps == ["cut off", "cleaned up"]


def test_telegram_may_be_away_when_the_bot_starts(own_bot: Bot, ada: int):
    own_bot.telegram.fail("getMe", 502, "Bad Gateway")
    own_bot.start()
    assert f"Telegram cannot be reached at {own_bot.telegram.base_url}, trying again" in own_bot.log
    assert "Welcome" in own_bot.answer_to("/start", sender=ada)


def test_old_updates_are_deleted_after_a_week(own_bot: Bot):
    week = timezone.now() - timedelta(days=8)
    TelegramUpdate.objects.create(bot_id=1, update_id=1, raw="{}", state="done", settled_at=week)
    young = TelegramUpdate.objects.create(
        bot_id=1, update_id=2, raw="{}", state="done", settled_at=timezone.now()
    )
    own_bot.start()
    wait_for(lambda: TelegramUpdate.objects.count() == 1, message=own_bot.log)
    assert TelegramUpdate.objects.get() == young


# --- The token ---


@pytest.mark.parametrize(
    ("token", "url", "complaint"),
    [
        ("", "https://api.telegram.org/bot", "TELEGRAM_BOT_TOKEN is not set"),
        ("no token", "https://api.telegram.org/bot", "has to be digits, a colon and letters"),
        ("4242:AAAA", "127.0.0.1:9000/bot", "TELEGRAM_API_BASE_URL must start with http:// or https://"),
        ("4242:AAAA", "http://127.0.0.1:9000", "and end in /bot. It is http://127.0.0.1:9000"),
    ],
)
def test_settings_that_cannot_work_are_said_clearly(settings: Any, token: str, url: str, complaint: str):
    settings.TELEGRAM_BOT_TOKEN, settings.TELEGRAM_API_BASE_URL = token, url
    with pytest.raises(CommandError, match=re.escape(complaint)) as refused:
        call_command("run_bot", skip_checks=True)
    assert refused.value.returncode == 2


def test_a_token_that_telegram_does_not_know_is_said_clearly(database_url: str):
    with BotApiServer() as telegram:
        ended = subprocess.run(
            [sys.executable, str(REPOSITORY / "manage.py"), "run_bot"],
            env=os.environ
            | telegram.environment
            | {"DATABASE_URL": database_url, "TELEGRAM_BOT_TOKEN": "4242:revoked"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 2
    assert "Telegram does not know TELEGRAM_BOT_TOKEN" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_that_is_revoked_while_the_bot_runs_stops_it(own_bot: Bot, ada: int):
    process = own_bot.start()
    own_bot.answer_to("/start", sender=ada)
    own_bot.telegram.fail("getUpdates", 401, "Unauthorized", times=5)
    own_bot.telegram.say("/balance", sender=ada)
    assert process.wait(20) == 2
    assert "Telegram does not know TELEGRAM_BOT_TOKEN" in own_bot.log


def test_the_token_never_stands_in_the_log(own_bot: Bot, ada: int):
    own_bot.telegram.drop("getMe")
    own_bot.start(LOG_LEVEL="DEBUG")
    own_bot.telegram.drop("sendMessage")
    own_bot.answer_to("/start", sender=ada)
    own_bot.stop()
    assert "connected as @videos_test_bot" in own_bot.log
    assert own_bot.telegram.token.partition(":")[2] not in own_bot.log
