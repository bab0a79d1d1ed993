"""Requests: a message, or a button that was pressed, as its handler gets it.

A request may be handled again after a crash or an error: the outcome has to be the same, for which `key` is there, and
one message is sent at most, inside the turn that the inbox opens around it.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from telegram import CallbackQuery, Chat, Message
from telegram.error import BadRequest

from accounts.models import User
from telegram_bot.errors import Refusal
from telegram_bot.models import TelegramAccount
from telegram_bot.sending.client import BotClient, is_unmodified, send_in_place
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts.parts import escaped, only_in_private, shortened, without_local_times

logger = logging.getLogger(__name__)

# Telegram's limit for the text that appears over the chat when a button was pressed.
MAX_ANSWER = 200


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request in a chat. `account` is the sender's, whose language is the active one.

    `key` is the same when the update is handled again, and no other update's. `about` is the message that asks: the
    sender's own, or the one that the button belongs to. `thread_id` is the topic in which that message stands.
    """

    bot: BotClient
    live: LiveStatus
    key: str
    account: TelegramAccount
    chat: Chat
    thread_id: int | None = None
    about: int | None = None
    argument: str = ""

    @property
    def person(self) -> User:
        return self.account.user

    @property
    def in_private(self) -> bool:
        return self.chat.type == Chat.PRIVATE

    def must_be_private(self) -> None:
        """Raise Refusal in a group."""
        if not self.in_private:
            raise Refusal(only_in_private())

    @property
    def reply_to(self) -> int | None:
        """Name the message that is answered, in a group."""
        return None if self.in_private else self.about

    @property
    def place(self) -> dict[str, int | None]:
        """Where the result of a job goes, as fields of JobMessage."""
        here = {"bot_id": self.bot.id, "chat_id": self.chat.id}
        return here | {"thread_id": self.thread_id, "reply_to": self.about}

    async def reply(self, text: str, **how: Any) -> Message:
        """Answer in Telegram's HTML; `how` as send_message has it, a keyboard for instance."""
        await self.acknowledge()
        where = {"reply_to": self.reply_to, "thread_id": self.thread_id}
        try:
            return await send_in_place(self.bot.send_message, self.chat.id, text, **where, **how)
        except BadRequest as error:
            if "tg-time" not in error.message:
                raise
            # A Bot API server of one's own that is older than this tag.
            text = without_local_times(text)
            return await send_in_place(self.bot.send_message, self.chat.id, text, **where, **how)

    async def acknowledge(self) -> None:
        """Answer a press; called before anything is sent."""

    async def refuse(self, text: str) -> None:
        """Say why not; `text` is plain text."""
        await self.reply(escaped(text))


@dataclass(frozen=True, kw_only=True)
class Request(Asked):
    """A message; `argument` is the text after its command, or all of it but the bot's name.

    `addressed` to the bot without doubt: in private, by a command, or by its name. In a group a reply to one of its
    messages may be meant for others.
    """

    message: Message
    addressed: bool = True


@dataclass(frozen=True, kw_only=True)
class Press(Asked):
    """A button that was pressed; `argument` is what it carries.

    The button spins until the press is answered, which happens before anything else is sent, and at the end at the
    latest.
    """

    query: CallbackQuery
    _answers: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The id that the button carries; 0, which no row has, for anything else."""
        carried = self.argument
        return int(carried) if carried.isascii() and carried.isdigit() and len(carried) < 19 else 0

    @property
    def shown_text(self) -> str:
        """The text of the message that the button belongs to; empty when Telegram does not say it any more."""
        return (self.query.message.text if isinstance(self.query.message, Message) else None) or ""

    async def answer(self, text: str = "", *, alert: bool = False) -> None:
        """Show a text over the chat for a moment, as plain text; with `alert` until it is tapped away. Only once."""
        if self._answers:
            return
        self._answers.append(text)
        shown = shortened(text, MAX_ANSWER)
        try:
            await self.bot.answer_callback_query(self.query.id, text=shown or None, show_alert=alert)
        except BadRequest as error:
            # It is minutes old, or was answered before a crash.
            logger.info("a press can no longer be answered: %s", error)
            if alert:
                await self.reply(escaped(text))

    async def acknowledge(self) -> None:
        await self.answer()

    async def show(self, text: str, **how: Any) -> None:
        """Replace the message that the button belongs to."""
        await self.acknowledge()
        try:
            await self.bot.edit_message_text(text, chat_id=self.chat.id, message_id=self.about, **how)
        except BadRequest as error:
            if not is_unmodified(error):
                await self.reply(text, **how)  # it was deleted, or is no text

    async def refuse(self, text: str) -> None:
        """Say why not, to the person who pressed alone."""
        await self.answer(text, alert=True)
