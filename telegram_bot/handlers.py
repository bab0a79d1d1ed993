"""The commands: one function each, which asks one operation and answers."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from django.db import transaction
from telegram import BotCommand, Message, ReplyParameters, Update, User
from telegram.error import TelegramError

from accounts import ledger
from accounts.models import CreditAccount
from accounts.models import User as Person
from generation import lifecycle, pricing
from generation.database import DATABASE_AWAY, in_database
from generation.errors import CannotCancel, GenerationError
from generation.models import GenerationJob
from telegram_bot import people, texts
from telegram_bot.client import BotClient, is_transient
from telegram_bot.live import LiveStatus, status_text
from telegram_bot.marks import written
from telegram_bot.models import JobMessage

logger = logging.getLogger(__name__)

COMMAND = re.compile(r"/(?P<name>\w{1,32})(?:@(?P<bot>\w+))?(?:\s+(?P<argument>.*))?", re.ASCII | re.DOTALL)
HISTORY_LENGTH = 5


@dataclass(frozen=True)
class Request:
    """One message of one person. `key` is the same when the same update is handled again."""

    bot: BotClient
    live: LiveStatus
    message: Message
    sender: User
    argument: str
    key: str

    @property
    def chat_id(self) -> int:
        return self.message.chat.id

    @property
    def in_private(self) -> bool:
        return self.message.chat.type == self.message.chat.PRIVATE

    async def reply(self, text: str) -> Message:
        """An answer; in a group, to the one who asked."""
        reply_to = None
        if not self.in_private:
            reply_to = ReplyParameters(self.message.message_id, allow_sending_without_reply=True)
        return await self.bot.send_message(self.chat_id, text, reply_parameters=reply_to)


# --- What the handlers ask of the database ----------------------------------------------------------------------------


@in_database
def person_of(sender: User) -> tuple[Person, str]:
    """The user here who wrote, and the name to greet them with."""
    account = people.account_of(sender)
    return account.user, account.first_name


@in_database
def wallet_of(person: Person) -> CreditAccount:
    return ledger.open_account(user=person)


@in_database
def quote_for(person: Person) -> pricing.Quote:
    return pricing.quote(preset=pricing.default_preset(), user=person)


@in_database
def last_jobs(person: Person) -> list[GenerationJob]:
    return list(
        GenerationJob.objects.filter(user=person, deleted_at=None).order_by("-created_at")[:HISTORY_LENGTH]
    )


@in_database
def submit(person: Person, prompt: str, *, key: str, place: dict[str, int]) -> tuple[JobMessage, str]:
    """The job and its row in the outbox, in one transaction; what the status message says first.

    `place` is where the result goes: bot_id, chat_id, reply_to.

    Raises:
        GenerationError: it was refused.
    """
    with transaction.atomic():
        source = GenerationJob.Source.TELEGRAM
        job = lifecycle.submit(user=person, prompt=prompt, source=source, idempotency_key=key)
        row, _ = JobMessage.objects.get_or_create(job=job, defaults=place)
    return row, status_text(job)


@in_database
def remember_status(row: JobMessage, *, message_id: int, text: str) -> bool:
    """False when the result is out already, so that the status message is to be removed at once."""
    pending = JobMessage.objects.filter(pk=row.pk, state=JobMessage.State.PENDING)
    return bool(pending.update(status_message_id=message_id, last_text=text))


@in_database
def cancel_newest(person: Person) -> GenerationJob | None:
    """The job that was canceled; None when none is live.

    Raises:
        CannotCancel: all that are live are being stored.
    """
    refused: CannotCancel | None = None
    for job in GenerationJob.objects.filter(user=person, state__in=GenerationJob.LIVE).order_by(
        "-created_at"
    ):
        try:
            return lifecycle.cancel(job=job, actor=person, reason="Canceled in Telegram")
        except CannotCancel as error:
            refused = error
    if refused is not None:
        raise refused
    return None


# --- The commands -----------------------------------------------------------------------------------------------------


async def start(request: Request) -> None:
    """Welcome, balance, and something to try."""
    person, name = await person_of(request.sender)
    await request.reply(texts.welcome(name=name, balance=(await wallet_of(person)).balance))


async def show_help(request: Request) -> None:
    """All commands with what they cost."""
    person, _ = await person_of(request.sender)
    await request.reply(texts.command_list(await quote_for(person)))


async def video(request: Request) -> None:
    """Make a video, or say how."""
    person, _ = await person_of(request.sender)
    if not request.argument:
        await request.reply(texts.video_usage(await quote_for(person)))
        return
    place = {"bot_id": request.bot.id, "chat_id": request.chat_id, "reply_to": request.message.message_id}
    row, text = await submit(person, request.argument, key=request.key, place=place)
    if row.status_message_id is None and row.state == JobMessage.State.PENDING:
        await _show_status(request, row, text)


async def balance(request: Request) -> None:
    """The wallet."""
    person, _ = await person_of(request.sender)
    wallet = await wallet_of(person)
    await request.reply(texts.balance(free=wallet.balance, held=wallet.held))


async def history(request: Request) -> None:
    """The last videos and what became of them."""
    person, _ = await person_of(request.sender)
    await request.reply(texts.history(await last_jobs(person)))


async def cancel(request: Request) -> None:
    """Stop the newest video that is being made."""
    person, _ = await person_of(request.sender)
    job = await cancel_newest(person)
    await request.reply(texts.nothing_to_cancel() if job is None else texts.canceled(job.prompt))


async def _show_status(request: Request, row: JobMessage, text: str) -> None:
    reply_to = ReplyParameters(request.message.message_id, allow_sending_without_reply=True)
    sent = await request.bot.send_message(row.chat_id, text, reply_parameters=reply_to)
    job_id: uuid.UUID = row.job_id
    mark = partial(remember_status, row, message_id=sent.message_id, text=text)
    if await written(mark, about=f"the status message of job {job_id.hex}"):
        request.live.track(job_id=job_id, chat_id=row.chat_id)
    else:
        # A quick node: the result overtook the message that announces it.
        await request.bot.delete_message(row.chat_id, sent.message_id)


Handler = Callable[[Request], Awaitable[None]]

COMMANDS: dict[str, tuple[Handler, str]] = {
    "start": (start, "Welcome"),
    "video": (video, "Generate AI video"),
    "balance": (balance, "Show your credits"),
    "history": (history, "Show your last videos"),
    "cancel": (cancel, "Cancel the video being made"),
    "help": (show_help, "Show all commands"),
}


def command_menu() -> list[BotCommand]:
    """What Telegram shows behind the menu button."""
    return [BotCommand(name, description) for name, (_, description) in COMMANDS.items()]


# --- From an update to its command ------------------------------------------------------------------------------------


class Dispatcher:
    """Finds the command an update asks for. Whatever a person writes that is none gets the help."""

    def __init__(self, *, bot: BotClient, bot_id: int, live: LiveStatus) -> None:
        self._bot, self._bot_id, self._live = bot, bot_id, live

    async def handle(self, update: Update) -> None:
        """Answer one update.

        Raises:
            TelegramError, database errors: it may be handled again, with the same outcome.
        """
        message = update.message
        sender = message.from_user if message else None
        if message is None or sender is None or sender.is_bot:
            return
        handler, argument = self._choose(message)
        if handler is None:
            return
        key = f"telegram:{self._bot_id}:{update.update_id}"
        await self._answer(handler, Request(self._bot, self._live, message, sender, argument, key))

    def _choose(self, message: Message) -> tuple[Handler | None, str]:
        """In a group the bot answers only what is meant for it."""
        in_private = message.chat.type == message.chat.PRIVATE
        match = COMMAND.fullmatch(message.text or "")
        if match is None:
            return (show_help if in_private and not _is_service(message) else None), ""
        addressed = match["bot"] is not None
        if addressed and match["bot"].lower() != self._bot.username.lower():
            return None, ""
        known = COMMANDS.get(match["name"].lower())
        if known is None:
            return (show_help if in_private or addressed else None), ""
        return known[0], (match["argument"] or "").strip()

    async def _answer(self, handler: Handler, request: Request) -> None:
        try:
            await handler(request)
        except GenerationError as error:
            await request.reply(texts.refusal(error))
        except (TelegramError, *DATABASE_AWAY):
            raise
        except Exception:
            await self._apologise(request)
            raise

    async def _apologise(self, request: Request) -> None:
        try:
            await request.reply(texts.trouble())
        except TelegramError as error:
            if is_transient(error):
                logger.warning("not even an apology went through: %s", error)


def _is_service(message: Message) -> bool:
    """Joins, pins and the like: nobody wrote them."""
    return message.effective_attachment is None and message.text is None
