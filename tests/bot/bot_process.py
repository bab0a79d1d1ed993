"""The bot under test, as a process of its own, and what tests of it look at."""

import itertools
import subprocess
from typing import Any

from accounts.models import User
from generation.models import GenerationJob
from telegram_bot.models import TelegramAccount, TelegramUpdate
from tests.bot_api_server import BotApiServer, Message
from tests.processes import Processes, wait_for

GROUP = -1001234
# What Telegram's kinds of markup are made of. It has to come back as it was written.
NASTY = "_*[]()~>#+-=|{}.!<b>&"
people = itertools.count(1000)


class Bot:
    """The process under test and the Telegram it talks to."""

    def __init__(self, telegram: BotApiServer, processes: Processes) -> None:
        self.telegram, self.processes = telegram, processes

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = self.processes.start("run_bot", **self.telegram.environment, **environment)
        polls = len(self.telegram.called("getUpdates"))
        wait_for(
            lambda: len(self.telegram.called("getUpdates")) > polls or process.poll() is not None,
            message="the bot did not come up: " + self.log,
        )
        return process

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self.processes.running["run_bot"]

    def kill(self) -> None:
        self.processes.kill("run_bot")

    def stop(self) -> int:
        return self.processes.stop("run_bot")

    @property
    def log(self) -> str:
        return self.processes.log("run_bot")

    def answer_to(self, text: str, *, sender: int, **facts: Any) -> str:
        """Send a text; returns the next message in the sender's own chat."""
        before = {message.message_id for message in self.telegram.shown(sender)}
        self.telegram.say(text, sender=sender, **facts)
        # Not by their number: a status message may go meanwhile.
        return wait_for(
            lambda: [m for m in self.telegram.shown(sender) if m.message_id not in before],
            message=f"no answer in chat {sender}: {self.log}",
        )[0].text

    def next_message(self, chat: int, *, after: int = 0) -> Message:
        return wait_for(
            lambda: self.telegram.shown(chat)[after:], message=f"no answer in chat {chat}: {self.log}"
        )[0]


def user_of(telegram_id: int) -> User:
    return TelegramAccount.objects.get(telegram_id=telegram_id).user


def job_of(telegram_id: int) -> GenerationJob:
    return wait_for(
        lambda: GenerationJob.objects.filter(user__telegram_account__telegram_id=telegram_id).first(),
        message="no job was made",
    )


def inbox_is_empty() -> bool:
    return not TelegramUpdate.objects.filter(state=TelegramUpdate.State.RECEIVED).exists()


def the_status(bot: Bot, chat: int) -> Message:
    return wait_for(
        lambda: [message for message in bot.telegram.shown(chat) if message.text.startswith("🎬 Generating")],
        message=f"no status message: {bot.log}",
    )[0]


def the_video(bot: Bot, chat: int) -> Message:
    return wait_for(
        lambda: [message for message in bot.telegram.shown(chat) if message.video],
        message=f"no video came: {bot.log}",
    )[0]


def labels(message: Message) -> list[str]:
    """The labels of the buttons below a message."""
    return [button["text"] for row in message.buttons for button in row]


def link_below(message: Message) -> str:
    """The address that a button below the message leads to."""
    [url] = [button["url"] for row in message.buttons for button in row if "url" in button]
    return str(url)
