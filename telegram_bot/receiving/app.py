"""From an update to the handler that answers it, in the language of the sender."""

import logging
import re
from dataclasses import dataclass
from typing import Any

from django.utils import translation
from django.utils.translation import gettext
from telegram import CallbackQuery, Chat, Message, Update
from telegram.constants import ChatID
from telegram.error import TelegramError

from generation.database import DATABASE_AWAY, in_database
from generation.errors import GenerationError, InsufficientCredits
from telegram_bot import commands, users
from telegram_bot.commands.payments import way_to_buy
from telegram_bot.errors import Refusal
from telegram_bot.receiving import routes
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.sending import outbox
from telegram_bot.sending.client import BotClient, is_transient
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import escaped

logger = logging.getLogger(__name__)

# Imported so that every handler is registered.
assert commands.__all__

COMMAND = re.compile(r"/(?P<name>\w{1,32})(?:@(?P<bot>\w+))?(?:\s+(?P<argument>.*))?", re.ASCII | re.DOTALL)
DEEP_LINK = re.compile(r"(?P<prefix>[a-z]+)_(?P<argument>[\w-]+)", re.ASCII)
HELP, TEXT = "help", "text"

account_of = in_database(users.account_of)


@dataclass(frozen=True)
class Choice:
    """The handler of a message, and what it gets."""

    handler: routes.RequestHandler
    argument: str = ""
    addressed: bool = True


class Dispatcher:
    """The way from an update to its handler. A message that has none gets the help."""

    def __init__(self, *, bot: BotClient, live: LiveStatus) -> None:
        self._bot, self._live = bot, live
        self._mention = re.compile(rf"(?<!\w)@{re.escape(bot.username)}(?!\w)", re.ASCII | re.IGNORECASE)

    async def handle(self, update: Update) -> None:
        """Answer one update.

        Raises:
            TelegramError, database errors: it may be handled again, with the same outcome.
        """
        key = f"telegram:{self._bot.id}:{update.update_id}"
        common = {"bot": self._bot, "live": self._live, "key": key}
        if update.message is not None:
            await self._hear(update.message, **common)
        elif update.callback_query is not None:
            await self._press(update.callback_query, **common)
        else:
            for kind, handler in routes.UPDATES.items():
                if (part := getattr(update, kind, None)) is not None:
                    await handler(self._bot, part)

    async def _hear(self, message: Message, **common: Any) -> None:
        sender = message.from_user
        # A message of a group, or a channel's that is forwarded to it, names a sender who is no person.
        if sender is None or sender.is_bot or sender.id == ChatID.SERVICE_CHAT or message.sender_chat:
            return
        if (choice := self._choose(message)) is None:
            return
        request = Request(
            **common,
            account=await account_of(sender),
            chat=message.chat,
            thread_id=thread_of(message),
            about=message.message_id,
            argument=choice.argument,
            addressed=choice.addressed,
            message=message,
        )
        await _send_what_waits(request)
        with translation.override(users.language_of(request.account)):
            await _run(choice.handler, request)

    def _choose(self, message: Message) -> Choice | None:
        """Choose a handler; None when the bot is not meant: in a group it answers only what is addressed to it."""
        for field, handler in routes.MESSAGES.items():
            if field != TEXT and getattr(message, field, None):
                return Choice(handler)
        if message.forward_origin or message.via_bot:  # another's words, and this person would pay for them
            return Choice(routes.COMMANDS[HELP]) if message.chat.type == Chat.PRIVATE else None
        match = COMMAND.fullmatch(message.text or "")
        if match is None:
            return self._choose_talk(message)
        addressed = match["bot"] is not None
        if addressed and match["bot"].lower() != self._bot.username.lower():
            return None
        name, argument = match["name"].lower(), (match["argument"] or "").strip()
        link = DEEP_LINK.fullmatch(argument) if name == "start" else None
        if link and link["prefix"] in routes.DEEP_LINKS:
            return Choice(routes.DEEP_LINKS[link["prefix"]], link["argument"])
        if name in routes.COMMANDS:
            return Choice(routes.COMMANDS[name], argument)
        return Choice(routes.COMMANDS[HELP]) if addressed or message.chat.type == Chat.PRIVATE else None

    def _choose_talk(self, message: Message) -> Choice | None:
        text, mentions = self._mention.subn(" ", message.text or "")
        addressed = message.chat.type == Chat.PRIVATE or bool(mentions)
        replied = message.reply_to_message
        to_us = replied is not None and replied.from_user is not None and replied.from_user.id == self._bot.id
        # In a topic, a message that replies to none names the one that opened the topic.
        to_us = to_us and replied is not None and replied.forum_topic_created is None
        is_talk = text.strip() and not text.startswith("/")
        if is_talk and (addressed or to_us):
            return Choice(routes.MESSAGES[TEXT], text.strip(), addressed)
        # Joins, pins and the like are not written by a person.
        is_service = message.effective_attachment is None and message.text is None
        return Choice(routes.COMMANDS[HELP]) if addressed and not is_service else None

    async def _press(self, query: CallbackQuery, **common: Any) -> None:
        name, _, argument = (query.data or "").partition(":")
        message = query.message
        press = Press(
            **common,
            account=await account_of(query.from_user),
            chat=message.chat if message else Chat(query.from_user.id, Chat.PRIVATE),
            thread_id=thread_of(message) if isinstance(message, Message) else None,
            about=message.message_id if message else None,
            argument=argument,
            query=query,
        )
        await _send_what_waits(press)
        with translation.override(users.language_of(press.account)):
            if handler := routes.BUTTONS.get(name):
                await _run(handler, press)
            else:
                await press.refuse(gettext("This button does not work any more. /help shows what does."))
            await press.answer()


def thread_of(message: Message) -> int | None:
    """Find the topic of a message. Elsewhere in groups the field numbers a chain of replies, which is no place."""
    is_topic = message.is_topic_message or message.chat.type == Chat.PRIVATE
    return message.message_thread_id if is_topic else None


async def _send_what_waits(asked: Asked) -> None:
    await in_database(outbox.send_what_waits)(
        asked.account,
        bot_id=asked.bot.id,
        chat_id=asked.chat.id,
        thread_id=asked.thread_id,
        in_private=asked.in_private,
    )


async def _run(handler: Any, asked: Asked) -> None:
    """Run a handler; a refusal is said, and an unexpected error is apologised for."""
    try:
        await handler(asked)
    except Refusal as error:
        await asked.refuse(str(error))
    except GenerationError as error:
        refusal = texts.refusal(error)
        # With a way to buy credits, as a message: words over the chat have no button.
        if isinstance(error, InsufficientCredits) and (markup := await way_to_buy(asked)):
            await asked.reply(escaped(refusal), reply_markup=markup)
        else:
            await asked.refuse(refusal)
    except (TelegramError, *DATABASE_AWAY):
        raise
    except Exception:
        try:
            await asked.refuse(
                gettext("⚠️ Something went wrong here, and we were told. Please try again in a moment.")
            )
        except TelegramError as error:
            if is_transient(error):
                logger.warning("not even an apology was sent: %s", error)
        raise
