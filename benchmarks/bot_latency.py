"""Measure how soon the bot answers a command: idle, while it uploads ten videos, and beside a bare python-telegram-bot;
and how many notices and videos it delivers a second when a round trip to Telegram takes 100 ms.

The bare bot is python-telegram-bot's own Application with one handler that answers at once: no database, no durable
inbox, nothing that survives a kill. Both talk to Bot API servers of the tests' own in this process, and are asked in
turn.
Timed from the moment an update is there to be fetched until its answer has arrived at the server.

    python -m benchmarks.bot_latency [--commands 60] [--videos 10] [--megabytes 4] [--line 1.0] [--deliveries 200]
"""

import argparse
import itertools
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
BARE_TOKEN = "4343:for-benchmarks-only-BBBBBBBBBBBBBBBBBBBBB"
PATIENCE_SECONDS = 120.0
ROUND_TRIP_SECONDS = 0.1
PAUSES = (0.05, 0.25)
COMMANDS = ("/balance", "/video a red fox in the snow", "/history", "/help")
REGULARS = range(50_000, 50_020)
regulars = itertools.cycle(REGULARS)


# --- The bots, processes of their own ---------------------------------------------------------------------------------
def serve_bare_bot() -> None:
    """Answers whatever is written, as the examples of python-telegram-bot do."""
    from telegram import Update
    from telegram.ext import Application, ContextTypes, MessageHandler, filters

    async def answer(update: Update, _: ContextTypes.DEFAULT_TYPE) -> None:
        assert update.message is not None
        await update.message.reply_text("Balance: 500 credits")

    application = (
        Application.builder().token(BARE_TOKEN).base_url(os.environ["TELEGRAM_API_BASE_URL"]).build()
    )
    application.add_handler(MessageHandler(filters.ALL, answer))
    application.run_polling()


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=os.environ | environment, stdout=subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


# --- What is measured -------------------------------------------------------------------------------------------------
def wait_for(what: Callable[[], Any], *, message: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise SystemExit(f"{message} within {PATIENCE_SECONDS:.0f} s")


def answers_to(telegram: Any, sender: int) -> int:
    return sum(message.chat_id == sender and not message.video for message in telegram.messages)


def latency(telegram: Any, text: str) -> float:
    """Milliseconds until the next one of the regulars has an answer."""
    sender = next(regulars)
    asked = time.monotonic()
    with telegram.changed:
        known = answers_to(telegram, sender)
        telegram.say(text, sender=sender)
        while answers_to(telegram, sender) == known:
            if time.monotonic() - asked > PATIENCE_SECONDS:
                raise SystemExit(f"no answer to {text} within {PATIENCE_SECONDS:.0f} s")
            telegram.changed.wait(1)
        return 1000 * (time.monotonic() - asked)


def ask(servers: dict[str, Any], *, number: int) -> dict[str, list[float]]:
    """Send the same commands to every bot, in turn."""
    times: dict[str, list[float]] = {name: [] for name in servers}
    for text in itertools.islice(itertools.cycle(COMMANDS), number):
        for name, telegram in servers.items():
            time.sleep(random.uniform(*PAUSES))
            times[name].append(latency(telegram, text))
    return times


def ask_until(telegram: Any, done: Callable[[], bool]) -> list[float]:
    """Commands to our bot, until `done`."""
    times = []
    for text in itertools.cycle(COMMANDS):
        if done():
            return times
        time.sleep(random.uniform(*PAUSES))
        times.append(latency(telegram, text))
    raise AssertionError("the commands have no end")


# --- Ten videos -------------------------------------------------------------------------------------------------------
def large_clip(folder: Path, *, megabytes: float) -> Path:
    """A playable clip with a box of nothing at its end."""
    from tests.clips import write_clip

    clip = write_clip(folder / "clip.mp4")
    size = round(megabytes * 1e6)
    with clip.open("ab") as file:
        file.write(size.to_bytes(4, "big") + b"free" + bytes(size - 8))
    return clip


def order_videos(telegram: Any, number: int) -> None:
    """Submit by /video, each video by another person; no node makes them yet."""
    from telegram_bot.models import JobMessage

    shown = JobMessage.objects.filter(status_message_id__isnull=False)
    before = shown.count()
    for sender in range(60_000, 60_000 + number):
        telegram.say("/video a red fox", sender=sender)
    wait_for(lambda: shown.count() >= before + number, message="the videos were not accepted")


def finish_videos(clip: Path, number: int) -> None:
    """Bring so many jobs to their ends through the lifecycle, with the clip in the storage: they are due to be sent."""
    from django.core.files import File
    from django.core.files.storage import default_storage
    from django.utils import timezone

    from generation.jobs import lifecycle, scheduling, stored_files
    from generation.models import GpuNode
    from tests.clips import FACTS

    GpuNode.objects.update_or_create(
        name="benchmark",
        defaults={
            "base_url": "http://127.0.0.1:9",
            "detected_protocol": "videos",
            "status": "ready",
            "last_seen_at": timezone.now() + timedelta(minutes=10),
        },
    )
    for _ in range(number):
        [attempt] = scheduling.claim(1)
        assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk, generation_ms=1000)
        name = default_storage.save(f"videos/{attempt.job_id.hex}.mp4", File(clip.open("rb")))
        files = (name, f"posters/{attempt.job_id.hex}.jpg")  # a poster that the bot has no need of
        stored_files.announce(files)
        assert lifecycle.complete(attempt_id=attempt.pk, files=files, facts=FACTS)


def videos_that_came(telegram: Any) -> int:
    with telegram.changed:
        return sum(bool(message.video) for message in telegram.messages)


# --- Deliveries a second ----------------------------------------------------------------------------------------------
def deliveries(telegram: Any, pid: int, folder: Path, number: int) -> str:
    """Deliver so many notices and so many small videos, each to a person of its own; returns a table."""
    from django.conf import settings
    from django.db import transaction

    from telegram_bot.models import ChatNotice, JobMessage
    from telegram_bot.sending import outbox
    from tests.clips import write_clip

    settings.TELEGRAM_BOT_TOKEN = telegram.token
    order_videos(telegram, number)
    chats = range(60_000, 60_000 + number)

    def notices() -> None:
        for chat in chats:
            outbox.tell(chat_id=chat, text="Hello")

    clip, telegram.latency = write_clip(folder / "small.mp4"), ROUND_TRIP_SECONDS
    kinds: dict[str, tuple[str, Callable[[], None], Any]] = {
        "notices": ("sendMessage", notices, ChatNotice.objects.exclude(state="sent")),
        "videos": (
            "sendVideo",
            lambda: finish_videos(clip, number),
            JobMessage.objects.exclude(state="sent", status_message_id=None),
        ),
    }
    rows = [
        "| | a second | most in one second | most under way | CPU of the bot each (ms) |",
        "|---|---|---|---|---|",
    ]
    for name, (method, begin, left) in kinds.items():
        used = cpu_seconds(pid)
        with transaction.atomic():  # all are due at once
            begin()
        wait_for(lambda left=left: not left.exists(), message=f"the {name} were not delivered")
        moments = [call.at for call in telegram.called(method)][-number:]
        used = 1000 * (cpu_seconds(pid) - used) / number
        rate = (number - 1) / (moments[-1] - moments[0])
        at_once = [
            max(sum(0 <= b - a < span for b in moments) for a in moments) for span in (1, ROUND_TRIP_SECONDS)
        ]
        rows.append(f"| {name} | {rate:.1f} | {at_once[0]} | {at_once[1]} | {used:.1f} |")
    telegram.reset()
    return "\n".join(rows)


def cpu_seconds(pid: int) -> float:
    figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(figures[11]) + int(figures[12])) / os.sysconf("SC_CLK_TCK")


# --- The run ----------------------------------------------------------------------------------------------------------
def measure(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    from tests.bot_api_server import BotApiServer

    with BotApiServer() as ours, BotApiServer(token=BARE_TOKEN) as bare:
        bare_bot = ["-m", "benchmarks.bot_latency", "--serve-bare-bot"]
        with running(["manage.py", "run_bot"], ours.environment) as pid, running(bare_bot, bare.environment):
            servers = {"ours, idle": ours, "bare python-telegram-bot, idle": bare}
            for telegram in servers.values():
                for _ in REGULARS:
                    latency(telegram, "/start")
            delivered = deliveries(ours, pid, folder, arguments.deliveries)
            times = ask(servers, number=arguments.commands)
            order_videos(ours, arguments.videos)
            ours.bytes_a_second = 1e6 * arguments.line
            finish_videos(large_clip(folder, megabytes=arguments.megabytes), arguments.videos)
            wait_for(lambda: ours.called("sendChatAction"), message="no upload began")
            busy = ask_until(ours, lambda: videos_that_came(ours) >= arguments.videos)
            times |= {f"ours, {arguments.videos} videos being sent": busy}
            return times, delivered


def table(results: dict[str, list[float]]) -> str:
    base = statistics.median(results["bare python-telegram-bot, idle"])
    head = "| | commands | p50 (ms) | p95 (ms) | p50 to the bare bot's |\n|---|---|---|---|---|\n"
    rows = []
    for name, times in results.items():
        p95 = statistics.quantiles(times, n=20, method="inclusive")[18]
        p50 = statistics.median(times)
        rows.append(f"| {name} | {len(times)} | {p50:.1f} | {p95:.1f} | {p50 / base:.2f} |")
    return head + "\n".join(rows)


def run(arguments: argparse.Namespace) -> None:
    from videoplatform import embedded_postgres

    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL runs as another user when this one is root
        # Nothing of the person's own installation.
        os.environ |= {"DATA_DIR": temporary, "DATABASE_URL": "", "SECRET_KEY": secrets.token_hex()}
        os.environ |= {"LOG_LEVEL": "WARNING", "VIDEO_COOLDOWN_SECONDS": "0", "TELEGRAM_BOT_TOKEN": ""}
        os.environ |= {"DJANGO_SETTINGS_MODULE": "videoplatform.settings"}
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connections

        with embedded_postgres.hold(folder):
            call_command("migrate", verbosity=0)
            results, delivered = measure(folder, arguments)
            connections.close_all()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {sys.version.split()[0]}\n")
    print(table(results), delivered, sep="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bot_latency")
    parser.add_argument("--commands", type=int, default=60, help="to each bot while it is idle")
    parser.add_argument("--videos", type=int, default=10, help="being sent at the same time")
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of each")
    parser.add_argument("--line", type=float, default=1.0, help="megabytes a second that an upload gets")
    parser.add_argument(
        "--deliveries", type=int, default=200, help="notices, and as many videos, due at once"
    )
    parser.add_argument("--serve-bare-bot", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_bare_bot:
        serve_bare_bot()
    else:
        run(arguments)


if __name__ == "__main__":
    main()
