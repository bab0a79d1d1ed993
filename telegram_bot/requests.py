"""What somebody asked of the bot: by a message, by a button, or by an update of another kind.

A handler gets one of these. It may be handled again after a crash or an error: what it does has to come out the same,
for which `key` is there, and one message is sent at most, inside the turn that the inbox opens around it.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import telegram
from telegram import CallbackQuery, Chat, Message, ReplyParameters, Update
from telegram.error import BadRequest

from accounts.models import User
from telegram_bot.client import BotClient, is_unmodified
from telegram_bot.live import LiveStatus
from telegram_bot.models import TelegramAccount
from telegram_bot.texts.parts import escaped, shortened

logger = logging.getLogger(__name__)

# Telegram's limit for the words that appear over the chat when a button was pressed.
MAX_ANSWER = 200


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """Any update. `key` is the same when it is handled again, and no other update's."""

    bot: BotClient
    live: LiveStatus
    update: Update
    key: str


@dataclass(frozen=True, kw_only=True)
class Asked(Incoming):
    """Somebody wants something, in a chat. `account` is theirs; their language is the active one.

    `about` is the message that says so: their own, or the one that the button belongs to.
    """

    account: TelegramAccount
    chat: Chat
    about: int | None = None
    argument: str = ""

    @property
    def person(self) -> User:
        return self.account.user

    @property
    def in_private(self) -> bool:
        return self.chat.type == Chat.PRIVATE

    @property
    def reply_to_asker(self) -> ReplyParameters | None:
        """In a group, an answer names what it answers."""
        return None if self.in_private else quoting(self.about)

    async def reply(self, text: str, **how: Any) -> Message:
        """An answer in Telegram's HTML; `how` as send_message has it, a keyboard for instance."""
        await self.acknowledge()
        return await self.bot.send_message(self.chat.id, text, reply_parameters=self.reply_to_asker, **how)

    async def acknowledge(self) -> None:
        """Nothing is to be sent before this."""

    async def refuse(self, words: str) -> None:
        """Say why not; `words` are plain text."""
        await self.reply(escaped(words))


@dataclass(frozen=True, kw_only=True)
class Request(Asked):
    """A message; `argument` is what follows its command, or all of it but the bot's name.

    `addressed` to the bot without doubt: in private, by a command, or by its name. In a group a reply to one of its
    messages may be meant for others.
    """

    message: Message
    sender: telegram.User
    addressed: bool = True


@dataclass(frozen=True, kw_only=True)
class Press(Asked):
    """A button that was pressed; `argument` is what it carries.

    The button shows that it works until the press is answered: this happens before anything else is sent, and at the
    end at the latest.
    """

    query: CallbackQuery
    _answers: list[str] = field(default_factory=list)

    async def answer(self, words: str = "", *, alert: bool = False) -> None:
        """Once: words over the chat for a moment, as plain text; with `alert` until they are tapped away."""
        if self._answers:
            return
        self._answers.append(words)
        shown = shortened(words, MAX_ANSWER)
        try:
            await self.bot.answer_callback_query(self.query.id, text=shown or None, show_alert=alert)
        except BadRequest as error:
            # It is minutes old, or was answered before a crash.
            logger.info("a press can no longer be answered: %s", error)
            if alert:
                await self.reply(escaped(words))

    async def acknowledge(self) -> None:
        await self.answer()

    async def show(self, text: str, **how: Any) -> None:
        """In place of the message that the button belongs to."""
        await self.acknowledge()
        try:
            await self.bot.edit_message_text(text, chat_id=self.chat.id, message_id=self.about, **how)
        except BadRequest as error:
            if not is_unmodified(error):
                await self.reply(text, **how)  # it was deleted, or is no text

    async def refuse(self, words: str) -> None:
        """Only the one who pressed sees it."""
        await self.answer(words, alert=True)


def quoting(message_id: int | None) -> ReplyParameters | None:
    """A reply to that message, or a plain message when it is gone."""
    if message_id is None:
        return None
    return ReplyParameters(message_id, allow_sending_without_reply=True)
