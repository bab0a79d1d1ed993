"""From an update to the handler that answers it, in the language of whoever asked."""

import logging
import re
from dataclasses import dataclass
from typing import Any

from django.utils import translation
from telegram import CallbackQuery, Chat, Message, Update
from telegram.error import TelegramError

from generation.database import DATABASE_AWAY, in_database
from generation.errors import GenerationError, InsufficientCredits
from telegram_bot import commands, language
from telegram_bot.commands.payments import way_to_buy
from telegram_bot.receiving import context, routes
from telegram_bot.receiving.context import Asked, Incoming, Press, Request
from telegram_bot.sending.client import BotClient, is_transient
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts import jobs
from telegram_bot.texts.parts import escaped

logger = logging.getLogger(__name__)

# Imported so that every handler is registered.
assert commands.__all__

COMMAND = re.compile(r"/(?P<name>\w{1,32})(?:@(?P<bot>\w+))?(?:\s+(?P<argument>.*))?", re.ASCII | re.DOTALL)
DEEP_LINK = re.compile(r"(?P<prefix>[a-z]+)_(?P<argument>[\w-]+)", re.ASCII)
HELP, TEXT = "help", "text"

account_of = in_database(context.account_of)


@dataclass(frozen=True)
class Choice:
    """Who handles a message, and with what."""

    handler: routes.RequestHandler
    argument: str = ""
    addressed: bool = True


class Dispatcher:
    """Finds the handler of an update. Whatever a person writes that has none gets the help."""

    def __init__(self, *, bot: BotClient, bot_id: int, live: LiveStatus) -> None:
        self._bot, self._bot_id, self._live = bot, bot_id, live
        self._mention = re.compile(rf"(?<!\w)@{re.escape(bot.username)}(?!\w)", re.ASCII | re.IGNORECASE)

    async def handle(self, update: Update) -> None:
        """Answer one update.

        Raises:
            TelegramError, database errors: it may be handled again, with the same outcome.
        """
        if update.message is not None:
            await self._hear(update, update.message)
        elif update.callback_query is not None:
            await self._press(update, update.callback_query)
        else:
            for kind, handler in routes.UPDATES.items():
                if getattr(update, kind, None) is not None:
                    await handler(Incoming(**self._common(update)))

    def _common(self, update: Update) -> dict[str, Any]:
        key = f"telegram:{self._bot_id}:{update.update_id}"
        return {"bot": self._bot, "live": self._live, "update": update, "key": key}

    # --- Messages -----------------------------------------------------------------------------------------------------

    async def _hear(self, update: Update, message: Message) -> None:
        sender = message.from_user
        if sender is None or sender.is_bot or (choice := self._choose(message)) is None:
            return
        account = await account_of(sender)
        request = Request(
            **self._common(update),
            account=account,
            chat=message.chat,
            about=message.message_id,
            argument=choice.argument,
            addressed=choice.addressed,
            message=message,
            sender=sender,
        )
        with translation.override(language.language_of(account)):
            await _run(choice.handler, request)

    def _choose(self, message: Message) -> Choice | None:
        """None when the bot is not meant: in a group it answers only what is addressed to it."""
        for field, handler in routes.MESSAGES.items():
            if field != TEXT and getattr(message, field, None):
                return Choice(handler)
        in_private = message.chat.type == Chat.PRIVATE
        match = COMMAND.fullmatch(message.text or "")
        if match is None:
            return self._choose_talk(message, in_private)
        addressed = match["bot"] is not None
        if addressed and match["bot"].lower() != self._bot.username.lower():
            return None
        return _choose_command(match) or (_help() if in_private or addressed else None)

    def _choose_talk(self, message: Message, in_private: bool) -> Choice | None:
        text, mentions = self._mention.subn(" ", message.text or "")
        addressed = in_private or bool(mentions)
        replied = message.reply_to_message
        to_us = replied is not None and replied.from_user is not None and replied.from_user.id == self._bot_id
        # A forwarded text is somebody else's, and would be paid for.
        is_talk = text.strip() and not text.startswith("/") and not message.forward_origin
        if is_talk and (addressed or to_us):
            return Choice(routes.MESSAGES[TEXT], text.strip(), addressed)
        return _help() if addressed and not _is_service(message) else None

    # --- Buttons ------------------------------------------------------------------------------------------------------

    async def _press(self, update: Update, query: CallbackQuery) -> None:
        account = await account_of(query.from_user)
        name, _, argument = (query.data or "").partition(":")
        message = query.message
        press = Press(
            **self._common(update),
            account=account,
            chat=message.chat if message else Chat(query.from_user.id, Chat.PRIVATE),
            about=message.message_id if message else None,
            argument=argument,
            query=query,
        )
        with translation.override(language.language_of(account)):
            await _run(routes.BUTTONS.get(name, _unknown_button), press)
            await press.answer()


def _choose_command(match: re.Match[str]) -> Choice | None:
    name, argument = match["name"].lower(), (match["argument"] or "").strip()
    if name == "start" and (link := DEEP_LINK.fullmatch(argument)) and link["prefix"] in routes.DEEP_LINKS:
        return Choice(routes.DEEP_LINKS[link["prefix"]], link["argument"])
    known = routes.COMMANDS.get(name)
    return Choice(known.handler, argument) if known else None


def _help() -> Choice:
    return Choice(routes.COMMANDS[HELP].handler)


async def _unknown_button(press: Press) -> None:
    await press.refuse(jobs.unknown_button())


async def _run(handler: Any, asked: Asked) -> None:
    try:
        await handler(asked)
    except InsufficientCredits as error:
        await _offer_more(asked, jobs.refusal(error))
    except GenerationError as error:
        await asked.refuse(jobs.refusal(error))
    except (TelegramError, *DATABASE_AWAY):
        raise
    except Exception:
        await _apologise(asked)
        raise


async def _offer_more(asked: Asked, refusal: str) -> None:
    """A refusal with the way out of it, where there is one. As a message then: words over the chat have no button."""
    if button := await way_to_buy(asked):
        await asked.reply(escaped(refusal), reply_markup=button)
    else:
        await asked.refuse(refusal)


async def _apologise(asked: Asked) -> None:
    try:
        await asked.refuse(jobs.trouble())
    except TelegramError as error:
        if is_transient(error):
            logger.warning("not even an apology went through: %s", error)


def _is_service(message: Message) -> bool:
    """Joins, pins and the like: nobody wrote them."""
    return message.effective_attachment is None and message.text is None
