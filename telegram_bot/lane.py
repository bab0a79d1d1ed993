"""One lane for messages: the next one is sent when Telegram's answer to the last one is written down.

A process that is killed between the two repeats the message when it is back, because nothing says that it went out.
With many on their way at once it would repeat them all; with one lane it is one at most. Telegram takes 30 messages a
second from a bot and answers in a few hundredths of one, so that the lane costs little. Uploads take long and stay
outside: `delivery` has another way not to repeat them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any

from telegram.request import HTTPXRequest, RequestData

from telegram_bot.traffic import outcome_of, traffic


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
