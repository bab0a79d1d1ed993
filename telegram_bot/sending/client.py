"""The one connection to the Bot API: one rate limiter for all traffic, and which errors are worth another try."""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

import httpx
from django.db import transaction
from django.db.models import F
from telegram import LinkPreviewOptions
from telegram.constants import ParseMode
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, RetryAfter, TelegramError
from telegram.ext import AIORateLimiter, Defaults, ExtBot
from telegram.request import HTTPXRequest, RequestData

from generation.database import DATABASE_AWAY, in_database
from telegram_bot.models import BotTraffic

TOKEN = re.compile(r"(\d{1,20}):[\w-]{1,200}", re.ASCII)


class BadToken(Exception):
    """The token cannot be one from @BotFather: it has to be digits, a colon and letters. Check TELEGRAM_BOT_TOKEN."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def bot_id_of(token: str) -> int:
    """The bot's own id, which its token begins with.

    Raises:
        BadToken: it has another form.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise BadToken
    return int(match[1])


# What the bot does, in figures: requests to Telegram by outcome, and how long updates waited to be answered.
#
# Counted in memory and added to the database every few seconds, so that `/metrics` tells the same in every process.


logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
UPDATE = "update"
OUTCOMES = {200: "ok", 403: "blocked", 429: "wait"}


@dataclass
class Figures:
    """How often, and seconds in all."""

    number: int = 0
    seconds: float = 0.0


class Traffic:
    """Figures that are not in the database yet, by what was done and how it came out."""

    def __init__(self) -> None:
        self._figures: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)

    def count(self, what: str, outcome: str, *, seconds: float) -> None:
        figures = self._figures[what, outcome]
        figures.number += 1
        figures.seconds += seconds

    async def flush_for_ever(self) -> None:
        """A crash loses the last few seconds of it."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Add what there is to the database; what cannot be added now is kept for the next time."""
        figures, self._figures = self._figures, defaultdict(Figures)
        try:
            await _add(dict(figures))
        except DATABASE_AWAY as error:
            logger.warning("figures are kept until the database is back: %s", error)
            for key, kept in figures.items():
                self._figures[key].number += kept.number
                self._figures[key].seconds += kept.seconds


def outcome_of(status: int) -> str:
    """In a word, from the status of an answer."""
    return OUTCOMES.get(status, "refused" if status < 500 else "error")


@in_database
@transaction.atomic
def _add(figures: dict[tuple[str, str], Figures]) -> None:
    for (what, outcome), added in figures.items():
        row, _ = BotTraffic.objects.get_or_create(what=what, outcome=outcome)
        BotTraffic.objects.filter(pk=row.pk).update(
            number=F("number") + added.number, seconds=F("seconds") + added.seconds
        )


traffic = Traffic()


# One lane for messages: the next one is sent when Telegram's answer to the last one is written down.
#
# A process that is killed between the two repeats the message when it is back, because nothing says that it went out.
# With many on their way at once it would repeat them all; with one lane it is one at most. Telegram takes 30 messages a
# second from a bot and answers in a few hundredths of one, so that the lane costs little. Uploads take long and stay
# outside: `delivery` has another way not to repeat them.


class Turn:
    """The right to send, from the first message on until the end of the turn."""

    def __init__(self) -> None:
        self._lane: asyncio.Lock | None = None

    async def begin(self, lane: asyncio.Lock) -> None:
        if self._lane is None:
            await lane.acquire()
            self._lane = lane

    def end(self) -> None:
        if self._lane is not None:
            self._lane.release()
            self._lane = None


_turn: ContextVar[Turn | None] = ContextVar("turn", default=None)


@asynccontextmanager
async def turn() -> AsyncIterator[None]:
    """Around a send and its mark. What is waited for before the send, a rate limit say, keeps nobody else waiting."""
    mine = Turn()
    token = _turn.set(mine)
    try:
        yield
    finally:
        _turn.reset(token)
        mine.end()


class LaneRequest(HTTPXRequest):
    """Requests that send a message begin the turn they are made in; one that was refused ends it at once."""

    __slots__ = ("_lane",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._lane = asyncio.Lock()

    async def do_request(
        self, url: str, method: str, request_data: RequestData | None = None, *args: Any, **kwargs: Any
    ) -> tuple[int, bytes]:
        mine = _turn.get()
        if mine is None or not _is_message(url, request_data):
            return await self._counted(url, method, request_data, *args, **kwargs)
        await mine.begin(self._lane)
        try:
            status, payload = await self._counted(url, method, request_data, *args, **kwargs)
        except BaseException:
            mine.end()
            raise
        if status != 200:
            mine.end()
        return status, payload

    async def _counted(self, url: str, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        began, outcome = monotonic(), "unreachable"
        try:
            status, payload = await super().do_request(url, *args, **kwargs)
            outcome = outcome_of(status)
        finally:
            traffic.count(_method(url), outcome, seconds=monotonic() - began)
        return status, payload


def _is_message(url: str, request_data: RequestData | None) -> bool:
    """A send that Telegram answers at once: no upload, and nothing that only says that one is under way."""
    name = _method(url)
    uploads = request_data is not None and request_data.contains_files
    return name.startswith("send") and name != "sendChatAction" and not uploads


def _method(url: str) -> str:
    return url.rpartition("/")[2]


# The bot's own id, read from its token: also for processes that never speak to Telegram.


UPDATES = 100
MEDIA_SECONDS = 300.0
# Somebody's payment hangs, or their button spins, until these are answered: no flood wait of others holds them up.
AT_ONCE = {"answerPreCheckoutQuery", "answerCallbackQuery"}
PERMANENT = (BadRequest, Forbidden, InvalidToken, ChatMigrated)


class BotClient(ExtBot[int]):
    """python-telegram-bot's client, with updates also as they came over the wire."""

    __slots__ = ()

    async def get_raw_updates(
        self, *, offset: int | None, timeout: int, kinds: list[str]
    ) -> list[dict[str, Any]]:
        """Up to 100 updates of these kinds after a wait of at most `timeout` seconds, unparsed.

        `get_updates` parses the whole batch: one update it does not understand would be fetched for ever.
        """
        data = {"offset": offset, "timeout": timeout, "limit": UPDATES, "allowed_updates": kinds}
        result = await self._post("getUpdates", data, read_timeout=timeout + 10.0)
        return [update for update in result if isinstance(update, dict)] if isinstance(result, list) else []

    async def _do_post(self, endpoint: str, data: dict[str, Any], **timeouts: Any) -> Any:
        if endpoint in AT_ONCE:
            return await super(ExtBot, self)._do_post(endpoint, data, **timeouts)
        return await super()._do_post(endpoint, data, **timeouts)


def connect_to(*, token: str, base_url: str) -> BotClient:
    """A client for `token`; `base_url` as TELEGRAM_API_BASE_URL, up to and with `/bot`."""
    return BotClient(
        token=token,
        base_url=base_url,
        base_file_url=file_url(base_url),
        request=LaneRequest(
            connection_pool_size=64,
            connect_timeout=10.0,
            read_timeout=10.0,
            write_timeout=10.0,
            pool_timeout=30.0,
            media_write_timeout=MEDIA_SECONDS,
        ),
        get_updates_request=HTTPXRequest(connection_pool_size=2, connect_timeout=10.0, read_timeout=10.0),
        defaults=Defaults(
            parse_mode=ParseMode.HTML, link_preview_options=LinkPreviewOptions(is_disabled=True)
        ),
        rate_limiter=AIORateLimiter(max_retries=3),
    )


def file_url(base_url: str) -> str:
    """Where files are fetched from: `https://api.telegram.org/bot` has `https://api.telegram.org/file/bot`."""
    head, bot, tail = base_url.rpartition("/bot")
    return f"{head}/file/bot{tail}" if bot else base_url


def is_transient(error: BaseException) -> bool:
    """Telegram or the way to it is in trouble: the same request may work later.

    What never works later is listed, because by class BadRequest is a NetworkError, and an answer that is no JSON
    is a bare TelegramError.
    """
    return isinstance(error, TelegramError) and not isinstance(error, PERMANENT)


def may_have_arrived(error: TelegramError) -> bool:
    """The request was out when the connection broke: Telegram may have carried it out."""
    return isinstance(error.__cause__, (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError))


def is_unmodified(error: BadRequest) -> bool:
    """The message shows already what it was to be changed to."""
    return "not modified" in error.message.lower()


def wait_asked_for(error: BaseException) -> float | None:
    """Seconds Telegram wants to be left alone, if it said so."""
    if not isinstance(error, RetryAfter):
        return None
    wait = error.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


class HideToken(logging.Filter):
    """Keeps the token out of every log line and traceback: it stands in the URL of each request."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._secrets = [token, token.partition(":")[2]]

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (clean := self._clean(message)) != message:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._clean(record.exc_text)
        return True

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "<token>")
        return text


def hide_token_in_logs(token: str) -> None:
    """Also in what libraries log: the filter sits on the handlers, which see every record."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(HideToken(token))
