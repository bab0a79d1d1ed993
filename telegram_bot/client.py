"""The one connection to the Bot API: one rate limiter for all traffic, and which errors are worth another try."""

import logging
from datetime import timedelta
from typing import Any

import httpx
from telegram import LinkPreviewOptions
from telegram.constants import ParseMode
from telegram.error import BadRequest, ChatMigrated, Forbidden, InvalidToken, RetryAfter, TelegramError
from telegram.ext import AIORateLimiter, Defaults, ExtBot
from telegram.request import HTTPXRequest

from telegram_bot.lane import LaneRequest

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
