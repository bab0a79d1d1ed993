"""A Bot API server for tests: it accepts what Telegram accepts, refuses what Telegram refuses, and fails on demand.

Only the standard library. In a test: `with BotApiServer() as telegram`, then `telegram.say()` and `telegram.shown()`.
By hand: `python -m tests.bot_api_server --port 9000`, then `POST /control/say {"sender": 1, "text": "/start"}` and
`GET /control/messages`.
"""

import argparse
import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from tests import bot_api_rules as rules
from tests.bot_api_chats import Message
from tests.bot_api_http import handler_of
from tests.bot_api_people import People, PressOfButton
from tests.bot_api_rules import DropConnection, Refused

__all__ = ["TOKEN", "BotApiServer", "Message", "PressOfButton"]

TOKEN = "4242:for-tests-only-AAAAAAAAAAAAAAAAAAAAAAAAAAA"


@dataclass
class Fault:
    """A fault that the next `times` calls of `method` (any, when None) get instead of an answer."""

    method: str | None
    error: Refused | None  # None: the connection is dropped
    times: int
    after_doing: bool = False  # the request is carried out, and then the connection is dropped


@dataclass
class Call:
    method: str
    parameters: dict[str, Any]
    at: float


class BotApiServer(People):
    """One bot at one server, on a free port of the loopback interface."""

    def __init__(self, *, token: str = TOKEN, port: int = 0) -> None:
        super().__init__(bot_id=int(token.partition(":")[0]))
        self.token = token
        self.calls: list[Call] = []
        self.menus: dict[str, list[dict[str, str]]] = {}  # by language code
        self.descriptions: dict[tuple[str, str], str] = {}  # long or short, and language code
        self.latency = 0.0  # seconds until a call is answered
        self.bytes_a_second: float | None = None  # how fast one upload is taken; None: at once
        self._held: dict[str, bool] = {}
        self._faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler_of(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def __enter__(self) -> "BotApiServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/bot"

    @property
    def environment(self) -> dict[str, str]:
        """The settings by which the bot's process finds this server."""
        return {
            "TELEGRAM_BOT_TOKEN": self.token,
            "TELEGRAM_API_BASE_URL": self.base_url,
            "NO_PROXY": "127.0.0.1",
        }

    # --- What tests do ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all messages and faults; updates that were not fetched are gone."""
        with self.changed:
            self.messages.clear()
            self.calls.clear()
            self.presses.clear()
            for trouble in (
                self.blocked_by, self.muted_in, self.closed_topics, self.gone_topics, self.gone_messages,
            ):  # fmt: skip
                trouble.clear()
            self.latency = 0.0
            self._faults.clear()
            self._updates.clear()
            self._held.clear()

    def fail(
        self, method: str | None, status: int, description: str, *, times: int = 1, **parameters: Any
    ) -> None:
        """Refuse the next calls, e.g. `fail("sendVideo", 429, "Too Many Requests: retry after 1", retry_after=1)`."""
        with self.changed:
            self._faults.append(Fault(method, Refused(status, description, **parameters), times))

    def drop(self, method: str | None, *, times: int = 1, after_doing: bool = False) -> None:
        """Close the connection without an answer, before or after the request is carried out."""
        with self.changed:
            self._faults.append(Fault(method, None, times, after_doing))

    def hold(self, method: str, *, undone: bool = False) -> None:
        """Answer calls of `method` only after `release`. They are carried out at once, or after it with `undone`."""
        with self.changed:
            self._held[method] = undone

    def release(self) -> None:
        """Answer what was held back, and go on."""
        with self.changed:
            self._held.clear()
            self.changed.notify_all()

    def heal(self) -> None:
        """No more faults."""
        with self.changed:
            self._faults.clear()

    def called(self, method: str) -> list[Call]:
        with self.changed:
            return [call for call in self.calls if call.method == method]

    # --- What the Bot API does ----------------------------------------------------------------------------------------

    def answer(self, method: str, parameters: dict[str, Any]) -> Any:
        """The result of one call, by the method's own name.

        Raises:
            Refused, DropConnection.
        """
        with self.changed:
            self.calls.append(Call(method, parameters, time.monotonic()))
            fault = self._fault_for(method)
            self.changed.notify_all()
            if fault is not None and not fault.after_doing:
                raise fault.error or DropConnection
        operation = getattr(self, "_on_" + re.sub("([A-Z])", r"_\1", method).lower(), None)
        if operation is None:
            raise Refused(404, "Not Found: method not found")
        if method == "getUpdates":
            return operation(parameters)
        with self.changed:
            while self._held.get(method):
                self.changed.wait(0.5)
            result = operation(parameters)
            self.changed.notify_all()
            while method in self._held:
                self.changed.wait(0.5)
        if fault is not None:
            raise DropConnection
        time.sleep(self.latency)
        return result

    def _fault_for(self, method: str) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method in (None, method):
                fault.times -= 1
                return fault
        return None

    def _on_set_my_commands(self, parameters: dict[str, Any]) -> bool:
        self.menus[self._menu(parameters)] = rules.commands(parameters)
        return True

    def _on_delete_my_commands(self, parameters: dict[str, Any]) -> bool:
        self.menus.pop(self._menu(parameters), None)
        return True

    def _on_get_my_description(self, parameters: dict[str, Any]) -> dict[str, str]:
        return {"description": self.descriptions.get(("long", rules.language(parameters)), "")}

    def _on_set_my_description(self, parameters: dict[str, Any]) -> bool:
        return self._describe("long", "description", 512, parameters)

    def _on_get_my_short_description(self, parameters: dict[str, Any]) -> dict[str, str]:
        return {"short_description": self.descriptions.get(("short", rules.language(parameters)), "")}

    def _on_set_my_short_description(self, parameters: dict[str, Any]) -> bool:
        return self._describe("short", "short_description", 120, parameters)

    def _describe(self, which: str, name: str, limit: int, parameters: dict[str, Any]) -> bool:
        if rules.units(parameters.get(name, "")) > limit:
            raise Refused(400, f"Bad Request: {name} is too long")
        self.descriptions[which, rules.language(parameters)] = parameters.get(name, "")
        return True

    def _menu(self, parameters: dict[str, Any]) -> str:
        """A language, and the chat when the menu is that of one chat."""
        scope = json.loads(parameters.get("scope") or "{}")
        return f"{rules.language(parameters)}{scope.get('chat_id', '')}"

    # --- By hand ------------------------------------------------------------------------------------------------------

    def control(self, name: str, body: dict[str, Any]) -> Any:
        """Control the server by HTTP: say, fail, messages."""
        if name == "say":
            return {"message_id": self.say(**body)}
        if name == "fail":
            return self.fail(**body)
        with self.changed:
            return [vars(message) | {"video": bool(message.video)} for message in self.messages]


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    with BotApiServer(port=parser.parse_args().port) as server:
        print(" ".join(f"{name}={value}" for name, value in server.environment.items()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
