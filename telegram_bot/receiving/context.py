"""What somebody asked of the bot: by a message, by a button, or by an update of another kind.

A handler gets one of these. It may be handled again after a crash or an error: what it does has to come out the same,
for which `key` is there, and one message is sent at most, inside the turn that the inbox opens around it.
"""

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import telegram
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone
from telegram import CallbackQuery, Chat, Message, ReplyParameters, Update
from telegram.error import BadRequest

from accounts.models import User
from telegram_bot.models import TelegramAccount
from telegram_bot.sending.client import BotClient, is_unmodified
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts.parts import escaped, shortened

# A row that is written at every message would cost each answer a commit.
SEEN_EVERY = timedelta(minutes=1)


def account_of(person: telegram.User) -> TelegramAccount:
    """The account of whoever wrote, opened at their first message and kept up to date."""
    account = _find(person.id) or open_account(telegram_id=person.id)
    now = timezone.now()
    facts: dict[str, object] = {
        "username": _storable(person.username, 64),
        "first_name": _storable(person.first_name, 128),
        "language_code": _storable(person.language_code, 16),
        "blocked_at": None,
    }
    lately = account.last_seen_at is not None and now - account.last_seen_at < SEEN_EVERY
    if lately and all(getattr(account, name) == value for name, value in facts.items()):
        return account
    for name, value in (facts | {"last_seen_at": now}).items():
        setattr(account, name, value)
    account.save(update_fields=[*facts, "last_seen_at"])
    return account


def open_account(*, telegram_id: int) -> TelegramAccount:
    """The account with that Telegram id, with a new user `tg_<id>` behind it when there is none yet."""
    if account := _find(telegram_id):
        return account
    try:
        with transaction.atomic():
            user = User.objects.create_user(username=_free_username(telegram_id))
            return TelegramAccount.objects.create(telegram_id=telegram_id, user=user)
    except IntegrityError:
        # Another process opened it at the same moment.
        return TelegramAccount.objects.select_related("user", "preset").get(telegram_id=telegram_id)


def mark_blocked(*, chat_id: int) -> None:
    """The person blocked the bot: a private chat has the id of the person."""
    TelegramAccount.objects.filter(telegram_id=chat_id, blocked_at=None).update(blocked_at=Now())


def _find(telegram_id: int) -> TelegramAccount | None:
    return TelegramAccount.objects.select_related("user", "preset").filter(telegram_id=telegram_id).first()


def _free_username(telegram_id: int) -> str:
    """`tg_<id>`, unless somebody signed up under that name on the web: their account is not to be taken over."""
    name, number = f"tg_{telegram_id}", 1
    while User.objects.filter(username=name).exists():
        number += 1
        name = f"tg_{telegram_id}_{number}"
    return name


def _storable(text: str | None, length: int) -> str:
    """Text that PostgreSQL can hold: without NUL and lone surrogates."""
    return (text or "").replace("\x00", "").encode("utf-8", "ignore").decode()[:length]


# Telegram users as users of this service.


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
