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
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests import bot_api_rules as rules
from tests import bot_api_stars as stars
from tests.bot_api_http import handler_of
from tests.bot_api_rules import DropConnection, Refused, parse_html, units

TOKEN = "4242:for-tests-only-AAAAAAAAAAAAAAAAAAAAAAAAAAA"
# So long a press may be answered.
PRESS_SECONDS = 15 * 60.0


@dataclass
class Fault:
    """What the next `times` calls of `method` (any, when None) get instead of an answer."""

    method: str | None
    error: Refused | None  # None: the connection is dropped
    times: int
    after_doing: bool = False  # the request is carried out, and then the connection is dropped


@dataclass
class Call:
    method: str
    parameters: dict[str, Any]
    at: float


@dataclass
class Message:
    """A message of the bot, as the person sees it now. `texts` are all it has ever shown."""

    message_id: int
    chat_id: int
    text: str
    reply_to: int | None = None
    video: bytes | None = None
    deleted: bool = False
    buttons: list[list[dict[str, Any]]] = field(default_factory=list)
    asks_for_reply: bool = False
    invoice: dict[str, Any] | None = None
    texts: list[str] = field(default_factory=list)


@dataclass
class PressOfButton:
    """A press, and what the bot answered: `words` are None until it did."""

    query_id: str
    at: float
    words: str | None = None
    alert: bool = False
    answered_at: float | None = None


class BotApiServer:
    """One bot at one server, on a free port of the loopback interface."""

    def __init__(self, *, token: str = TOKEN, port: int = 0) -> None:
        self.token, self.bot_id = token, int(token.partition(":")[0])
        self.messages: list[Message] = []
        self.calls: list[Call] = []
        self.files: dict[str, bytes] = {}
        self.menus: dict[str, list[dict[str, str]]] = {}  # by language code
        self.blocked_by: set[int] = set()
        self.webhook = ""
        self.bytes_a_second: float | None = None  # how fast one upload is taken; None: at once
        self.webhook_facts: dict[str, Any] = {}
        self.presses: dict[str, PressOfButton] = {}
        self.till = stars.Till()
        self._held: set[str] = set()
        self._known_chats: set[int] = set()
        self._updates: list[dict[str, Any]] = []
        self._brought: list[dict[str, Any]] = []
        self._faults: list[Fault] = []
        self._next_update, self._next_message = 1000, 1
        self._poll = self._poll_ended = 0
        self.changed = threading.Condition(threading.RLock())
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
        """What the bot's process needs to find it."""
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
            self.blocked_by.clear()
            self._faults.clear()
            self._updates.clear()
            self._held.clear()

    def say(
        self,
        text: str,
        *,
        sender: int = 77,
        chat: int | None = None,
        reply_to: Message | None = None,
        **sender_facts: Any,
    ) -> int:
        """Somebody writes to the bot, in private or in the group `chat`; returns the id of their message."""
        message = {"chat": _chat_of(sender, chat), "from": _person(sender, sender_facts), "text": text}
        if reply_to is not None:
            message["reply_to_message"] = self._shape(reply_to)
        return self.push_message(message)

    def press(self, message: Message, label: str, *, sender: int = 77, **sender_facts: Any) -> PressOfButton:
        """Somebody presses the button with these words below a message."""
        labels = {button["text"]: button for row in message.buttons for button in row}
        [button] = [button for text, button in labels.items() if label in text] or [None]
        assert button is not None, f"there is no button {label}: {list(labels)}"
        return self.press_data(message, button["callback_data"], sender=sender, **sender_facts)

    def press_data(
        self, message: Message, data: str, *, sender: int = 77, **sender_facts: Any
    ) -> PressOfButton:
        """The same with data that no button carries, as a client of somebody's own may send it."""
        with self.changed:
            press = PressOfButton(query_id=str(7_000_000 + self._number()), at=time.monotonic())
            self.presses[press.query_id] = press
            query = {
                "id": press.query_id,
                "from": _person(sender, sender_facts),
                "chat_instance": str(message.chat_id),
                "data": data,
                "message": self._shape(message),
            }
            self.push({"callback_query": query})
            return press

    def check_out(
        self, payload: str, amount: int, *, payer: int, currency: str = "XTR", **facts: Any
    ) -> stars.Checkout:
        """Somebody pressed Pay; wait for what the bot says."""
        with self.changed:
            checkout = self.till.check_out()
            query = {"id": checkout.query_id, "from": _person(payer, facts), "currency": currency}
            self.push({"pre_checkout_query": query | {"total_amount": amount, "invoice_payload": payload}})
            self.changed.wait_for(lambda: checkout.ok is not None, timeout=stars.CHECKOUT_SECONDS)
            return checkout

    def charge(
        self, payload: str, amount: int, *, payer: int, currency: str = "XTR", times: int = 1
    ) -> stars.StarCharge:
        """The Stars are paid, which the bot is told, `times` times over."""
        with self.changed:
            charge = self.till.charge(payer=payer, payload=payload, amount=amount)
            payment = {
                "currency": currency,
                "total_amount": amount,
                "invoice_payload": payload,
                "telegram_payment_charge_id": charge.charge_id,
                "provider_payment_charge_id": "",
            }
            message = {"chat": _chat_of(payer, None), "from": _person(payer, {})}
            for _ in range(times):
                self.push_message(message | {"successful_payment": payment})
            return charge

    def push_message(self, message: dict[str, Any]) -> int:
        """A message as Telegram would bring it, completed with its number and date."""
        with self.changed:
            number = self._number()
            self.push({"message": {"message_id": number, "date": int(time.time())} | message})
            return number

    def push(self, update: dict[str, Any], *, update_id: int | None = None) -> int:
        """Any update at all; it gets the next number unless it is given one."""
        with self.changed:
            if update_id is None:
                update_id = self._next_update
                self._next_update += 1
            message = update.get("message")
            if isinstance(message, dict) and isinstance(chat := message.get("chat"), dict):
                self._known_chats.add(chat.get("id"))
            self._brought.append({"update_id": update_id} | update)
            self._updates.append(self._brought[-1])
            self.changed.notify_all()
            return update_id

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

    def hold(self, method: str) -> None:
        """Calls of `method` are carried out, but not answered before `release`."""
        with self.changed:
            self._held.add(method)

    def release(self) -> None:
        """Answer what was held back, and go on."""
        with self.changed:
            self._held.clear()
            self.changed.notify_all()

    def end_poll(self) -> None:
        """Answer the poll that waits now with nothing, as after half a minute without news."""
        with self.changed:
            self._poll_ended = self._poll
            self.changed.notify_all()

    def heal(self) -> None:
        """No more faults."""
        with self.changed:
            self._faults.clear()

    def shown(self, chat: int = 77) -> list[Message]:
        """The bot's messages that stand in a chat now."""
        with self.changed:
            return [message for message in self.messages if message.chat_id == chat and not message.deleted]

    def called(self, method: str) -> list[Call]:
        with self.changed:
            return [call for call in self.calls if call.method == method]

    def last_update(self) -> dict[str, Any]:
        """As it was brought, so that it can be brought again."""
        with self.changed:
            return self._brought[-1]

    def unacknowledged(self) -> list[int]:
        """Numbers of the updates that would be brought again."""
        with self.changed:
            return [update["update_id"] for update in self._updates]

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
            result = operation(parameters)
            self.changed.notify_all()
            while method in self._held:
                self.changed.wait(0.5)
        if fault is not None:
            raise DropConnection
        return result

    def _fault_for(self, method: str) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method in (None, method):
                fault.times -= 1
                return fault
        return None

    def _number(self) -> int:
        self._next_message += 1
        return self._next_message

    def _on_get_me(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.bot_id, "is_bot": True, "first_name": "Videos", "username": "videos_test_bot"}

    def _on_get_updates(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """What was not acknowledged, after a long poll; a newer poll ends an older one."""
        with self.changed:
            if self.webhook:
                raise Refused(409, "Conflict: can't use getUpdates method while webhook is active")
            self._poll += 1
            mine = self._poll
            self.changed.notify_all()
            offset = int(parameters.get("offset") or 0)
            self._updates = [update for update in self._updates if update["update_id"] >= offset]
            deadline = time.monotonic() + float(parameters.get("timeout") or 0)
            while not self._updates and self._poll == mine != self._poll_ended:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self.changed.wait(min(left, 0.5))
            if self._poll != mine:
                raise Refused(409, "Conflict: terminated by other getUpdates request")
            return self._updates[: int(parameters.get("limit") or 100)]

    def _on_delete_webhook(self, _: dict[str, Any]) -> bool:
        self.webhook = ""
        return True

    def _on_set_webhook(self, parameters: dict[str, Any]) -> bool:
        if not parameters.get("url", "").startswith("https://"):
            raise Refused(400, "Bad Request: bad webhook: An HTTPS URL must be provided for webhook")
        if not re.fullmatch(r"[\w-]{1,256}", parameters.get("secret_token", "-"), re.ASCII):
            raise Refused(400, "Bad Request: secret token contains unallowed characters")
        self.webhook, self.webhook_facts = parameters["url"], parameters
        return True

    def _on_set_my_commands(self, parameters: dict[str, Any]) -> bool:
        self.menus[self._menu(parameters)] = rules.commands(parameters)
        return True

    def _on_delete_my_commands(self, parameters: dict[str, Any]) -> bool:
        self.menus.pop(self._menu(parameters), None)
        return True

    def _menu(self, parameters: dict[str, Any]) -> str:
        """A language, and the chat when the menu is that of one chat."""
        scope = json.loads(parameters.get("scope") or "{}")
        return f"{rules.language(parameters)}{scope.get('chat_id', '')}"

    def _on_answer_callback_query(self, parameters: dict[str, Any]) -> bool:
        """Once, and not after some minutes."""
        press = self.presses.get(parameters.get("callback_query_id", ""))
        now = time.monotonic()
        if press is None or press.answered_at is not None or now - press.at > PRESS_SECONDS:
            raise Refused(
                400,
                "Bad Request: query is too old and response timeout expired or query ID is invalid",
            )
        if units(parameters.get("text", "")) > 200:
            raise Refused(400, "Bad Request: MESSAGE_TOO_LONG")
        press.words, press.answered_at = parameters.get("text", ""), now
        press.alert = parameters.get("show_alert") == "true"
        return True

    def _on_send_invoice(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id = self._chat(parameters)
        shown = stars.invoice(parameters)
        message = Message(self._number(), chat_id, shown["title"], invoice=shown, texts=[shown["title"]])
        return self._post(message, parameters)

    def _on_answer_pre_checkout_query(self, parameters: dict[str, Any]) -> bool:
        return self.till.answer(parameters)

    def _on_refund_star_payment(self, parameters: dict[str, Any]) -> bool:
        charge = self.till.refund(parameters)
        payment = {
            "currency": "XTR",
            "total_amount": charge.amount,
            "invoice_payload": charge.payload,
            "telegram_payment_charge_id": charge.charge_id,
        }
        message = {"chat": _chat_of(charge.payer, None), "from": _person(charge.payer, {})}
        self.push_message(message | {"refunded_payment": payment})
        return True

    def _on_send_chat_action(self, parameters: dict[str, Any]) -> bool:
        self._chat(parameters)
        return True

    def _on_send_message(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id, reply_to = self._chat(parameters), self._reply_to(parameters)
        text = self._text(parameters, "text", 4096)
        message = Message(self._number(), chat_id, text, reply_to, texts=[text])
        message.asks_for_reply = "force_reply" in parameters.get("reply_markup", "")
        return self._post(message, parameters)

    def _on_send_video(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id, reply_to = self._chat(parameters), self._reply_to(parameters)
        caption = self._text(parameters, "caption", 1024, required=False)
        content = self._video(parameters, "video")
        message = Message(self._number(), chat_id, caption, reply_to, video=content, texts=[caption])
        posted = self._post(message, parameters)
        return posted | {"video": self._file(parameters, content), "caption": caption}

    def _on_edit_message_media(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """A message of text, too, may be given a video."""
        message = self._find(parameters, "message to edit not found")
        media = json.loads(parameters["media"])
        if media["type"] != "video":
            raise Refused(400, f"Bad Request: this server has no media of type {media['type']}")
        caption = self._text(media, "caption", 1024, required=False)
        content = self._video(parameters | media, "media")
        buttons = rules.keyboard(parameters)
        if (content, caption, buttons) == (message.video, message.text, message.buttons):
            raise Refused(400, "Bad Request: message is not modified")
        message.video, message.text, message.buttons = content, caption, buttons
        message.texts.append(caption)
        return self._shape(message) | {"video": self._file(media, content), "caption": caption}

    def _file(self, facts: dict[str, Any], content: bytes) -> dict[str, Any]:
        file_id = f"file-{self._number()}"
        self.files[file_id] = content
        return {
            "file_id": file_id,
            "file_unique_id": f"unique-{file_id}",
            "width": int(facts.get("width") or 0),
            "height": int(facts.get("height") or 0),
            "duration": int(float(facts.get("duration") or 0)),
            "file_size": len(content),
        }

    def _on_edit_message_text(self, parameters: dict[str, Any]) -> dict[str, Any]:
        message = self._find(parameters, "message to edit not found")
        text = self._text(parameters, "text", 4096)
        buttons = rules.keyboard(parameters)
        if message.video:
            raise Refused(400, "Bad Request: there is no text in the message to edit")
        if (text, buttons) == (message.text, message.buttons):
            raise Refused(
                400, "Bad Request: message is not modified: specified new message content is the same"
            )
        message.text, message.buttons = text, buttons
        message.texts.append(text)
        return self._shape(message)

    def _on_delete_message(self, parameters: dict[str, Any]) -> bool:
        self._find(parameters, "message to delete not found").deleted = True
        return True

    def _post(self, message: Message, parameters: dict[str, Any]) -> dict[str, Any]:
        message.buttons = rules.keyboard(parameters)
        self.messages.append(message)
        return self._shape(message)

    def _shape(self, message: Message) -> dict[str, Any]:
        chat = {"id": message.chat_id, "type": "private" if message.chat_id > 0 else "supergroup"}
        return {
            "message_id": message.message_id,
            "date": int(time.time()),
            "chat": chat,
            "from": self._on_get_me({}),
        } | ({"caption": message.text} if message.video else {"text": message.text})

    def _find(self, parameters: dict[str, Any], otherwise: str) -> Message:
        chat_id, number = self._chat(parameters), int(parameters.get("message_id") or 0)
        for message in self.messages:
            if (message.chat_id, message.message_id, message.deleted) == (chat_id, number, False):
                return message
        raise Refused(400, f"Bad Request: {otherwise}")

    def _chat(self, parameters: dict[str, Any]) -> int:
        chat_id = int(parameters.get("chat_id") or 0)
        if chat_id in self.blocked_by:
            raise Refused(403, "Forbidden: bot was blocked by the user")
        if chat_id not in self._known_chats:
            raise Refused(400, "Bad Request: chat not found")
        return chat_id

    def _reply_to(self, parameters: dict[str, Any]) -> int | None:
        if "reply_parameters" not in parameters:
            return None
        return int(json.loads(parameters["reply_parameters"])["message_id"])

    def _text(self, parameters: dict[str, Any], name: str, limit: int, *, required: bool = True) -> str:
        text = parameters.get(name) or ""
        mode = parameters.get("parse_mode")
        if mode not in (None, "HTML"):
            raise Refused(400, f"Bad Request: this server has no parse mode {mode}")
        text = (parse_html(text) if mode else text).strip()
        if required and not text:
            raise Refused(400, "Bad Request: message text is empty")
        if units(text) > limit:
            what = "message" if name == "text" else "message caption"
            raise Refused(400, f"Bad Request: {what} is too long")
        return text

    def _video(self, parameters: dict[str, Any], name: str) -> bytes:
        video = parameters.get(name) or ""
        if isinstance(video, str) and video.startswith("attach://"):
            video = parameters.get(video.removeprefix("attach://")) or b""
        content = self.files.get(video) if isinstance(video, str) else video
        if content is None:
            raise Refused(400, "Bad Request: wrong file identifier/HTTP URL specified")
        if not content:
            raise Refused(400, "Bad Request: file must be non-empty")
        if content[4:8] != b"ftyp" or b"moov" not in content:
            raise Refused(400, "Bad Request: failed to process the video: it is no MP4")
        return content

    # --- By hand ------------------------------------------------------------------------------------------------------

    def control(self, name: str, body: dict[str, Any]) -> Any:
        """The same by HTTP: say, fail, messages."""
        if name == "say":
            return {"message_id": self.say(**body)}
        if name == "fail":
            return self.fail(**body)
        with self.changed:
            return [vars(message) | {"video": bool(message.video)} for message in self.messages]


def _chat_of(sender: int, group: int | None) -> dict[str, Any]:
    if group is None:
        return {"id": sender, "type": "private", "first_name": "Ada"}
    return {"id": group, "type": "supergroup", "title": "Friends"}


def _person(sender: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {"id": sender, "is_bot": False, "first_name": "Ada", "language_code": "en"} | facts


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
