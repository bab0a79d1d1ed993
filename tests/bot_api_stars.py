"""Payments in Stars at the tests' Telegram: invoices, checkouts, charges and refunds, with what Telegram refuses."""

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.bot_api_rules import Refused

CHECKOUT_SECONDS = 10.0


@dataclass
class Checkout:
    """A press on Pay: the bot's answer, and after how long it came."""

    query_id: str
    at: float
    ok: bool | None = None
    words: str = ""
    answered_at: float | None = None


@dataclass
class StarCharge:
    charge_id: str
    payer: int
    payload: str
    amount: int
    refunded: bool = False


@dataclass
class Till:
    """The payments at this Telegram."""

    checkouts: dict[str, Checkout] = field(default_factory=dict)
    charges: dict[str, StarCharge] = field(default_factory=dict)
    _numbers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def number(self) -> int:
        with self._lock:
            self._numbers += 1
            return self._numbers

    def check_out(self) -> Checkout:
        checkout = Checkout(query_id=str(9_000_000 + self.number()), at=time.monotonic())
        self.checkouts[checkout.query_id] = checkout
        return checkout

    def charge(self, *, payer: int, payload: str, amount: int) -> StarCharge:
        made = StarCharge(f"stxCharge-{payer}-{self.number()}", payer, payload, amount)
        self.charges[made.charge_id] = made
        return made

    def answer(self, parameters: dict[str, Any]) -> bool:
        """answerPreCheckoutQuery"""
        checkout = self.checkouts.get(str(parameters.get("pre_checkout_query_id")))
        now = time.monotonic()
        if checkout is None or checkout.answered_at is not None or now - checkout.at > CHECKOUT_SECONDS:
            raise Refused(
                400, "Bad Request: query is too old and response timeout expired or query ID is invalid"
            )
        ok = parameters.get("ok") == "true"
        if not ok and not parameters.get("error_message"):
            raise Refused(400, "Bad Request: error message must be non-empty")
        checkout.ok, checkout.words = ok, parameters.get("error_message", "")
        checkout.answered_at = now
        return True

    def refund(self, parameters: dict[str, Any]) -> StarCharge:
        """refundStarPayment"""
        charge = self.charges.get(str(parameters.get("telegram_payment_charge_id")))
        if charge is None or charge.payer != int(parameters.get("user_id") or 0):
            raise Refused(400, "Bad Request: CHARGE_NOT_FOUND")
        if charge.refunded:
            raise Refused(400, "Bad Request: CHARGE_ALREADY_REFUNDED")
        charge.refunded = True
        return charge


def invoice(parameters: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters of sendInvoice; returns the invoice to show."""
    if parameters.get("currency") != "XTR":
        raise Refused(400, "Bad Request: CURRENCY_INVALID")
    if parameters.get("provider_token"):
        raise Refused(400, "Bad Request: PAYMENT_PROVIDER_INVALID")
    prices = json.loads(parameters.get("prices") or "[]")
    if len(prices) != 1 or not prices[0].get("label") or not 1 <= int(prices[0].get("amount", 0)) <= 10_000:
        raise Refused(400, "Bad Request: STARS_INVOICE_INVALID")
    for name, limit in (("title", 32), ("description", 255)):
        if not 1 <= len(parameters.get(name, "")) <= limit:
            raise Refused(400, f"Bad Request: {name} must be of 1 to {limit} characters")
    if not 1 <= len(parameters.get("payload", "").encode()) <= 128:
        raise Refused(400, "Bad Request: INVOICE_PAYLOAD_INVALID")
    if not re.fullmatch(r"[\w-]{0,64}", parameters.get("start_parameter", ""), re.ASCII):
        raise Refused(400, "Bad Request: START_PARAM_INVALID")
    return {
        "title": parameters["title"],
        "payload": parameters["payload"],
        "amount": int(prices[0]["amount"]),
        "start_parameter": parameters.get("start_parameter", ""),
    }
