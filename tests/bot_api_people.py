"""Updates from the tests' Telegram: people write, press buttons and pay; the bot polls, or has a webhook."""

import re
import time
from dataclasses import dataclass
from typing import Any

from tests import bot_api_stars as stars
from tests.bot_api_chats import Chats, Message
from tests.bot_api_rules import Refused, units

# So long a press may be answered.
PRESS_SECONDS = 15 * 60.0


@dataclass
class PressOfButton:
    """A press, and what the bot answered: `words` are None until it did."""

    query_id: str
    at: float
    words: str | None = None
    alert: bool = False
    answered_at: float | None = None


class People(Chats):
    """Actions of people, the updates they become, and the bot's answers."""

    def __init__(self, *, bot_id: int) -> None:
        super().__init__(bot_id=bot_id)
        self.presses: dict[str, PressOfButton] = {}
        self.till = stars.Till()
        self.webhook = ""
        self.webhook_facts: dict[str, Any] = {}
        self._updates: list[dict[str, Any]] = []
        self._brought: list[dict[str, Any]] = []
        self._next_update = 1000
        self._poll = self._poll_ended = 0

    # --- Actions of people --------------------------------------------------------------------------------------------

    def say(
        self,
        text: str,
        *,
        sender: int = 77,
        chat: int | None = None,
        reply_to: Message | None = None,
        thread: int | None = None,
        **sender_facts: Any,
    ) -> int:
        """Write to the bot, in private or in the group `chat`; returns the id of their message. thread: the topic."""
        message = {"chat": _chat_of(sender, chat), "from": _person(sender, sender_facts), "text": text}
        if reply_to is not None:
            message["reply_to_message"] = self.shape(reply_to)
        if thread is not None:
            message |= {"message_thread_id": thread, "is_topic_message": True}
        return self.push_message(message)

    def press(self, message: Message, label: str, *, sender: int = 77, **sender_facts: Any) -> PressOfButton:
        """Press the button with these words below a message."""
        labels = {button["text"]: button for row in message.buttons for button in row}
        [button] = [button for text, button in labels.items() if label in text] or [None]
        assert button is not None, f"there is no button {label}: {list(labels)}"
        return self.press_data(message, button["callback_data"], sender=sender, **sender_facts)

    def press_data(
        self, message: Message, data: str, *, sender: int = 77, **sender_facts: Any
    ) -> PressOfButton:
        """Press with data that no button carries, as a modified client may send it."""
        with self.changed:
            press = PressOfButton(query_id=str(7_000_000 + self._number()), at=time.monotonic())
            self.presses[press.query_id] = press
            query = {
                "id": press.query_id,
                "from": _person(sender, sender_facts),
                "chat_instance": str(message.chat_id),
                "data": data,
                "message": self.shape(message),
            }
            self.push({"callback_query": query})
            return press

    def check_out(
        self, payload: str, amount: int, *, payer: int, currency: str = "XTR", **facts: Any
    ) -> stars.Checkout:
        """Press Pay, and wait for the bot's answer."""
        with self.changed:
            checkout = self.till.check_out()
            query = {"id": checkout.query_id, "from": _person(payer, facts), "currency": currency}
            self.push({"pre_checkout_query": query | {"total_amount": amount, "invoice_payload": payload}})
            self.changed.wait_for(lambda: checkout.ok is not None, timeout=stars.CHECKOUT_SECONDS)
            return checkout

    def charge(
        self, payload: str, amount: int, *, payer: int, currency: str = "XTR", times: int = 1
    ) -> stars.StarCharge:
        """Pay the Stars; the bot gets the update `times` times."""
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
                self.known_chats.add(chat.get("id"))
            self._brought.append({"update_id": update_id} | update)
            self._updates.append(self._brought[-1])
            self.changed.notify_all()
            return update_id

    def end_poll(self) -> None:
        """Answer the poll that waits now with nothing, as after half a minute without news."""
        with self.changed:
            self._poll_ended = self._poll
            self.changed.notify_all()

    def last_update(self) -> dict[str, Any]:
        """An update as it was brought, so that it can be brought again."""
        with self.changed:
            return self._brought[-1]

    def unacknowledged(self) -> list[int]:
        """Numbers of the updates that would be brought again."""
        with self.changed:
            return [update["update_id"] for update in self._updates]

    # --- How the bot hears of it --------------------------------------------------------------------------------------

    def _on_get_updates(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """Return updates that are not acknowledged, after a long poll; a newer poll ends an older one."""
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

    # --- What the bot answers -----------------------------------------------------------------------------------------

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


def _chat_of(sender: int, group: int | None) -> dict[str, Any]:
    if group is None:
        return {"id": sender, "type": "private", "first_name": "Ada"}
    return {"id": group, "type": "supergroup", "title": "Friends"}


def _person(sender: int, facts: dict[str, Any]) -> dict[str, Any]:
    return {"id": sender, "is_bot": False, "first_name": "Ada", "language_code": "en"} | facts
