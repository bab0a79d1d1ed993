"""The connection to the Bot API: rate limits, the order of sends, counters, and errors worth another try."""

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from time import monotonic
from typing import Any

import httpx
from django.db import transaction
from django.db.models import F
from telegram import LinkPreviewOptions, Message, ReplyParameters
from telegram.constants import ParseMode
from telegram.error import (
    BadRequest,
    ChatMigrated,
    EndPointNotFound,
    Forbidden,
    InvalidToken,
    RetryAfter,
    TelegramError,
)
from telegram.ext import AIORateLimiter, Defaults, ExtBot
from telegram.request import HTTPXRequest, RequestData

from generation.database import DATABASE_AWAY, delays, in_database
from telegram_bot.models import BotTraffic

logger = logging.getLogger(__name__)

BotClient = ExtBot[int]

MEDIA_SECONDS = 300.0
# A payment hangs, or a button spins, until these are answered: no flood wait of others holds them up.
AT_ONCE = {"answerPreCheckoutQuery", "answerCallbackQuery"}
PERMANENT = (BadRequest, Forbidden, InvalidToken, ChatMigrated)

# --- Counters -------------------------------------------------------------------------------------------------------

FLUSH_SECONDS = 5.0
UPDATE = "update"
OUTCOMES = {200: "ok", 403: "blocked", 429: "wait"}


class Traffic:
    """Requests by outcome and updates by how long they waited, added to the database every few seconds.

    There, `/metrics` of every process has the same figures. A crash loses the last few seconds.
    """

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], tuple[int, float]] = {}

    def count(self, what: str, outcome: str, *, seconds: float, number: int = 1) -> None:
        before, total = self._figures.get((what, outcome), (0, 0.0))
        self._figures[what, outcome] = before + number, total + seconds

    async def flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Add the figures to the database, or keep them for the next time."""
        figures, self._figures = self._figures, {}
        try:
            await _add(figures)
        except DATABASE_AWAY as error:
            logger.warning("figures are kept until the database is back: %s", error)
            for (what, outcome), (number, seconds) in figures.items():
                self.count(what, outcome, seconds=seconds, number=number)


@in_database
@transaction.atomic
def _add(figures: dict[tuple[str, str], tuple[int, float]]) -> None:
    for (what, outcome), (number, seconds) in sorted(figures.items()):  # locked in one order
        row, _ = BotTraffic.objects.get_or_create(what=what, outcome=outcome)
        BotTraffic.objects.filter(pk=row.pk).update(
            number=F("number") + number, seconds=F("seconds") + seconds
        )


traffic = Traffic()

# --- One send at a time ---------------------------------------------------------------------------------------------

Mark = Callable[[bool], Awaitable[None]]


class Turn:
    """The right to send, from the first message on until the end of the turn, or until its request is written down.

    `mark` writes down that the request is on its way to Telegram, and with False that Telegram did not take it.
    """

    def __init__(self, mark: Mark | None = None) -> None:
        self._send_lock: asyncio.Lock | None = None
        self._mark = mark

    async def begin(self, send_lock: asyncio.Lock) -> None:
        if self._send_lock is None:
            await send_lock.acquire()
            self._send_lock = send_lock

    def end(self) -> None:
        if self._send_lock is not None:
            self._send_lock.release()
            self._send_lock = None

    async def trace(self, event: str, _: object) -> None:
        """End the turn when the request is out and written down. Called by httpx in the middle of a request."""
        if self._mark and self._send_lock is not None and event.endswith("send_request_body.complete"):
            await self._mark(True)
            self.end()

    async def refused(self) -> None:
        self.end()
        if self._mark:
            await self._mark(False)


_turn: ContextVar[Turn | None] = ContextVar("turn", default=None)


@asynccontextmanager
async def turn(mark: Mark | None = None) -> AsyncIterator[None]:
    """Hold the send lock from the first message that is sent inside until the end, where it is written down.

    A process that is killed between a send and its mark repeats the message, because nothing says that it was sent.
    With many under way it would repeat them all; with the lock it is one at most. What is waited for before the send,
    such as a rate limit, delays no other message. Uploads take long and stay outside: `results` has another way not
    to repeat them.

    With `mark` the lock is held until the request has left this process, not until the answer is there: so many
    messages are under way at once, and a kill still repeats only the one whose leaving was not written down.
    """
    mine = Turn(mark)
    token = _turn.set(mine)
    try:
        yield
    finally:
        _turn.reset(token)
        mine.end()


async def _trace(request: httpx.Request) -> None:
    if (mine := _turn.get()) is not None:
        request.extensions["trace"] = mine.trace


class OrderedRequest(HTTPXRequest):
    """Requests that send a message begin the turn they are made in; one that was refused ends it at once."""

    __slots__ = ("_send_lock",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, httpx_kwargs={"event_hooks": {"request": [_trace]}})
        self._send_lock = asyncio.Lock()

    async def do_request(
        self, url: str, method: str, request_data: RequestData | None = None, *args: Any, **kwargs: Any
    ) -> tuple[int, bytes]:
        name = url.rpartition("/")[2]
        uploads = request_data is not None and request_data.contains_files
        mine = _turn.get() if is_message(name) and not uploads else None
        if mine is not None:
            await mine.begin(self._send_lock)
        status, began = 0, monotonic()
        try:
            status, payload = await super().do_request(url, method, request_data, *args, **kwargs)
        except TelegramError:
            if mine is not None:
                await mine.refused()
            raise
        finally:
            outcome = (
                OUTCOMES.get(status, "refused" if status < 500 else "error") if status else "unreachable"
            )
            traffic.count(name, outcome, seconds=monotonic() - began)
        if mine is not None and status != 200:
            await mine.refused()
        return status, payload


def is_message(method: str) -> bool:
    return method.startswith("send") and method != "sendChatAction"


# --- The client -----------------------------------------------------------------------------------------------------


class RateLimiter(AIORateLimiter):
    """python-telegram-bot's limiter for messages, which alone count for Telegram's 30 a second.

    Nothing holds up what has to be answered at once. Edits and the like have limits of their own, so that they take
    nothing from messages; in a group they count for its 20 a minute, too. With 30 results a second as many status
    messages are deleted, beside the edits of `progress.EDITS_PER_SECOND`. Rates are for sixths of a second: counted by
    the second, twice as many could leave in the first one.
    """

    def __init__(self) -> None:
        super().__init__(overall_max_rate=5, overall_time_period=1 / 6, max_retries=3)
        self._others = AIORateLimiter(overall_max_rate=7, overall_time_period=1 / 6, max_retries=3)

    async def process_request(
        self,
        callback: Callable[..., Coroutine[Any, Any, Any]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],
        rate_limit_args: int | None,
    ) -> Any:
        if endpoint in AT_ONCE:
            return await callback(*args, **kwargs)
        chat_id = data.get("chat_id")
        in_group = isinstance(chat_id, int) and chat_id < 0
        if is_message(endpoint) or (in_group and endpoint.startswith("edit")):
            return await super().process_request(callback, args, kwargs, endpoint, data, rate_limit_args)
        return await self._others.process_request(callback, args, kwargs, endpoint, data, rate_limit_args)


def connect_to(*, token: str, base_url: str) -> BotClient:
    """Make a client for `token`; `base_url` as TELEGRAM_API_BASE_URL, up to and with `/bot`."""
    # Files are fetched from beside it: `https://api.telegram.org/bot` has `https://api.telegram.org/file/bot`.
    head, bot, tail = base_url.rpartition("/bot")
    return ExtBot(
        token=token,
        base_url=base_url,
        base_file_url=f"{head}/file/bot{tail}" if bot else base_url,
        request=OrderedRequest(
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
        rate_limiter=RateLimiter(),
    )


# `get_updates` parses the whole batch: one update it does not understand would be fetched for ever.
warnings.filterwarnings("ignore", message="Please use 'Bot.get_updates' instead")


async def fetch_updates(
    bot: BotClient, *, offset: int | None, timeout: int, kinds: list[str]
) -> list[dict[str, Any]]:
    """Fetch up to 100 updates of these kinds as they came, after a wait of at most `timeout` seconds."""
    data = {"offset": offset, "timeout": timeout, "allowed_updates": kinds}
    try:
        result = await bot.do_api_request("get_updates", api_kwargs=data, read_timeout=timeout + 10.0)
    except EndPointNotFound as error:  # so this method calls an unknown token
        raise InvalidToken("Telegram does not know the token") from error
    return [update for update in result if isinstance(update, dict)] if isinstance(result, list) else []


async def send_in_place(
    send: Callable[..., Awaitable[Message]],
    chat_id: int,
    *what: Any,
    reply_to: int | None,
    thread_id: int | None,
    **how: Any,
) -> Message:
    """Send into a topic and as a reply to a message, and without the one of them that is gone meanwhile.

    In a topic Telegram refuses a reply to a deleted message, whatever the request allows.
    """
    quoted = None if reply_to is None else ReplyParameters(reply_to, allow_sending_without_reply=True)
    try:
        return await send(chat_id, *what, reply_parameters=quoted, message_thread_id=thread_id, **how)
    except BadRequest as error:
        why = error.message.lower()
        if reply_to is not None and "repl" in why:
            reply_to = None
        elif thread_id is not None and "thread not found" in why and chat_id > 0:
            # Not so in a group: what was asked for in a topic is not shown to those outside of it.
            reply_to = thread_id = None
        else:
            raise
    return await send_in_place(send, chat_id, *what, reply_to=reply_to, thread_id=thread_id, **how)


# --- Errors ---------------------------------------------------------------------------------------------------------


def is_transient(error: BaseException) -> bool:
    """Check that Telegram or the way to it is in trouble: the same request may work later.

    Permanent errors are listed, because by class BadRequest is a NetworkError, and an answer that is no JSON is a bare
    TelegramError.
    """
    return isinstance(error, TelegramError) and not isinstance(error, PERMANENT)


def may_have_arrived(error: TelegramError) -> bool:
    """Check that the request was out when the connection broke: Telegram may have carried it out."""
    return isinstance(error.__cause__, (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError))


def is_gone(error: TelegramError) -> bool:
    """Check that a message can never be edited again: it was deleted, or is too old."""
    why = error.message.lower()
    return "to edit not found" in why or "can't be edited" in why or "message_id_invalid" in why


def is_unmodified(error: TelegramError) -> bool:
    """Check that the message already shows what it was to be changed to."""
    return "not modified" in error.message.lower()


def wait_asked_for(error: BaseException) -> float | None:
    """Return the seconds for which Telegram asked to be left alone, if it did."""
    if not isinstance(error, RetryAfter):
        return None
    wait = error.retry_after
    return wait.total_seconds() if isinstance(wait, timedelta) else float(wait)


async def patiently(operation: Callable[[], Awaitable[None]], *, trouble: str) -> None:
    """Repeat `operation` until Telegram and the database take it; `trouble` is logged when they do not."""
    for pause in delays(longest=30.0):
        try:
            await operation()
            return
        except InvalidToken:
            raise
        except (TelegramError, *DATABASE_AWAY) as error:
            logger.warning("%s, trying again: %s", trouble, error)
            await asyncio.sleep(wait_asked_for(error) or pause)


class HideToken(logging.Filter):
    """A filter that keeps the token out of every log line and traceback: it stands in the URL of each request."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._secrets = [token, token.partition(":")[2]]

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._clean(record.getMessage()), ()
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
    """Clean what libraries log, too: the filter is on the handlers, which see every record."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(HideToken(token))
