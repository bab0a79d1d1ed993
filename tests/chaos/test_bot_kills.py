"""R7: the bot is killed again and again while every update comes twice."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from generation.models import GenerationJob, GpuNode
from telegram_bot.models import JobMessage, TelegramUpdate
from tests.bot_api_server import BotApiServer
from tests.processes import Processes, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

SENDERS = 40
STATUS = "Generating video"


def test_every_command_makes_one_job_though_the_bot_is_killed_and_each_update_comes_twice(
    processes: Processes, amount: Any, rng: random.Random, score: Any, finish_job: Callable[..., Any]
) -> None:
    commands, kills = amount(400, 12), amount(30, 2)
    finished = commands // 4
    row = score(
        "R7",
        test="kill -9 of the bot, every update delivered twice",
        load=f"{commands} /video commands of {SENDERS} people, {finished} videos delivered meanwhile",
        faults=f"{kills} kills, {commands} repeated updates",
        bar="as many jobs as commands, 0 duplicates, at most 1 repeated message a kill",
    )
    with BotApiServer() as telegram:
        processes.environment |= {
            **telegram.environment,
            "VIDEO_COOLDOWN_SECONDS": "0",
            "SIGNUP_CREDITS": "100000",
        }
        processes.start("run_bot")
        updates = [_command(telegram, number) for number in range(commands)]
        for number in range(kills):
            time.sleep(rng.uniform(0.2, 1.5))
            _finish(finish_job, finished * (number + 1) // kills)
            processes.kill("run_bot")
            processes.start("run_bot")
        wait_for(lambda: GenerationJob.objects.count() >= commands, seconds=180)
        for number, update_id in enumerate(updates):
            _command(telegram, number, update_id=update_id)
        wait_for(lambda: not telegram.unacknowledged(), seconds=60)
        wait_for(lambda: _statuses(telegram) >= commands, seconds=180)
        wait_for(lambda: not TelegramUpdate.objects.filter(state=TelegramUpdate.State.RECEIVED), seconds=60)
        _finish(finish_job, finished)
        wait_for(
            lambda: JobMessage.objects.filter(state=JobMessage.State.SENT).count() == finished, seconds=60
        )
        processes.stop("run_bot")
        repeated = _statuses(telegram) - commands + max(0, _videos(telegram) - finished)
    assert GenerationJob.objects.count() == commands
    assert len(set(GenerationJob.objects.values_list("prompt", flat=True))) == commands
    assert _prompts_with_videos(telegram) == finished
    row.result = f"{commands} jobs, 0 duplicates, {repeated} repeated messages after {kills} kills"
    assert repeated <= kills
    call_command("audit_credits")
    row.passed = True


def _finish(finish_job: Callable[..., Any], total: int) -> None:
    """Complete the oldest jobs, until `total` are completed or the next one was not answered yet."""
    GpuNode.objects.update(last_seen_at=timezone.now())
    while GenerationJob.objects.filter(state=GenerationJob.State.COMPLETED).count() < total:
        queued = JobMessage.objects.filter(job__state=GenerationJob.State.QUEUED)
        oldest = queued.order_by("job__created_at").first()
        if oldest is None or oldest.status_message_id is None:
            return
        finish_job(oldest.job)


def _command(telegram: BotApiServer, number: int, *, update_id: int | None = None) -> int:
    """One person's /video, as Telegram brings it; with `update_id` it comes again."""
    sender = 7000 + number % SENDERS
    message = {
        "message_id": 100_000 + number,
        "date": 1_700_000_000 + number,
        "chat": {"id": sender, "type": "private", "first_name": "Ada"},
        "from": {"id": sender, "is_bot": False, "first_name": "Ada", "language_code": "en"},
        "text": f"/video a red ball, number {number}",
    }
    return telegram.push({"message": message}, update_id=update_id)


def _prompts_with_videos(telegram: BotApiServer) -> int:
    """Count the prompts that are answered with a video in a chat now."""
    captions = {
        message.text.splitlines()[1] for message in telegram.messages if message.video and not message.deleted
    }
    return len(captions)


def _statuses(telegram: BotApiServer) -> int:
    """Count the messages that said that a clip is being made."""
    return sum(STATUS in message.texts[0] for message in telegram.messages)


def _videos(telegram: BotApiServer) -> int:
    """Count the messages that were sent as videos, without those whose text became a video."""
    return sum(bool(message.video) and STATUS not in message.texts[0] for message in telegram.messages)
