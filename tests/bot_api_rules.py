"""Refusals of Telegram's Bot API in its own words, as far as the bot's messages can run into them."""

import html
import json
import re
from typing import Any
from urllib.parse import urlsplit

TAGS = {
    "b",
    "strong",
    "i",
    "em",
    "u",
    "ins",
    "s",
    "strike",
    "del",
    "code",
    "pre",
    "a",
    "blockquote",
    "span",
    "tg-time",
}
MARKUP = re.compile(
    r"<(?P<close>/?)(?P<name>[a-zA-Z0-9-]*)[^<>]*>|<|&(?P<entity>[a-z]+|#\d+|#x[0-9a-fA-F]+);"
)
MAX_BUTTONS = 100
MAX_DATA_BYTES = 64
MAX_COMMANDS = 100
# What a button does: exactly one of these.
ACTIONS = {"callback_data", "url", "web_app", "login_url", "switch_inline_query", "pay", "copy_text"}


class DropConnection(Exception):
    """No answer at all."""


class Refused(Exception):
    """An answer with `ok: false`."""

    def __init__(self, status: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.status, self.description, self.parameters = status, description, parameters


def units(text: str) -> int:
    """Length as Telegram counts it."""
    return len(text.encode("utf-16-le")) // 2


def parse_html(text: str) -> str:
    """The text without its tags; refuses what Telegram cannot parse."""
    shown, opened, position = [], [], 0
    for match in MARKUP.finditer(text):
        shown.append(text[position : match.start()])
        position = match.end()
        if match["entity"] is not None:
            known = match["entity"].startswith("#") or match["entity"] in ("lt", "gt", "amp", "quot")
            shown.append(html.unescape(match[0]) if known else match[0])
        elif match["name"] not in TAGS:
            raise _unparsable(f'Unsupported start tag "{match["name"] or ""}" at byte offset {match.start()}')
        elif not match["close"]:
            opened.append(match["name"])
        elif not opened or opened.pop() != match["name"]:
            raise _unparsable(f"Unmatched end tag at byte offset {match.start()}")
    if opened:
        raise _unparsable(f'Can\'t find end tag corresponding to start tag "{opened[-1]}"')
    return "".join(shown) + text[position:]


def _unparsable(why: str) -> Refused:
    return Refused(400, f"Bad Request: can't parse entities: {why}")


def keyboard(parameters: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The buttons below a message; none for a request to reply."""
    markup = json.loads(parameters.get("reply_markup") or "{}")
    if not isinstance(markup, dict):
        raise Refused(400, "Bad Request: object expected as reply markup")
    if markup.get("force_reply"):
        if units(markup.get("input_field_placeholder") or "x") > 64:
            raise Refused(400, "Bad Request: INPUT_FIELD_PLACEHOLDER_INVALID")
        return []
    rows = markup.get("inline_keyboard", [])
    if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
        raise Refused(400, "Bad Request: field inline_keyboard must be an Array of non-empty Arrays")
    buttons = [button for row in rows for button in row]
    if len(buttons) > MAX_BUTTONS:
        raise Refused(400, "Bad Request: reply markup is too long")
    for button in buttons:
        _check_button(button)
    return rows


def _check_button(button: dict[str, Any]) -> None:
    if not button.get("text"):
        raise Refused(400, "Bad Request: inline keyboard button text must be non-empty")
    if len(ACTIONS & button.keys()) != 1:
        raise Refused(400, "Bad Request: text buttons are unallowed in the inline keyboard")
    if "callback_data" in button and not 0 < len(button["callback_data"].encode()) <= MAX_DATA_BYTES:
        raise Refused(400, "Bad Request: BUTTON_DATA_INVALID")
    if "url" in button:
        address = urlsplit(button["url"])
        if address.scheme not in ("http", "https", "tg") or "." not in (address.hostname or ""):
            raise Refused(
                400, f"Bad Request: inline keyboard button URL '{button['url']}' is invalid: Wrong HTTP URL"
            )


def commands(parameters: dict[str, Any]) -> list[dict[str, str]]:
    """The entries of a menu."""
    entries = json.loads(parameters["commands"])
    if not 0 < len(entries) <= MAX_COMMANDS:
        raise Refused(400, "Bad Request: BOT_COMMANDS_TOO_MUCH")
    for entry in entries:
        if not re.fullmatch(r"[a-z0-9_]{1,32}", entry["command"]):
            raise Refused(400, "Bad Request: BOT_COMMAND_INVALID")
        if not 0 < units(entry["description"]) <= 256:
            raise Refused(400, "Bad Request: BOT_COMMAND_DESCRIPTION_INVALID")
    return entries


def language(parameters: dict[str, Any]) -> str:
    """Two letters, or empty for everybody else."""
    code = parameters.get("language_code", "")
    if not re.fullmatch(r"([a-z]{2})?", code):
        raise Refused(400, "Bad Request: invalid language code specified")
    return code
