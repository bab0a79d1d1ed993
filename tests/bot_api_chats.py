"""Chats at the tests' Telegram: messages that are sent, edited and deleted, and what is refused of them."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests import bot_api_rules as rules
from tests import bot_api_stars as stars
from tests.bot_api_rules import Refused, parse_html, units
from tests.bot_api_state import State


@dataclass
class Message:
    """A message of the bot, as the person sees it now. `texts` are all it has ever shown."""

    message_id: int
    chat_id: int
    text: str
    reply_to: int | None = None
    thread: int | None = None
    video: bytes | None = None
    deleted: bool = False
    buttons: list[list[dict[str, Any]]] = field(default_factory=list)
    asks_for_reply: bool = False
    invoice: dict[str, Any] | None = None
    texts: list[str] = field(default_factory=list)


class Chats(State):
    """The messages in the chats, and the methods of the Bot API that change them."""

    def __init__(self, *, bot_id: int) -> None:
        super().__init__(bot_id=bot_id)
        self.messages: list[Message] = []
        self.files: dict[str, bytes] = {}
        self.blocked_by: set[int] = set()
        # Groups in which the bot may not write, and topics (chat, number) that are closed or gone.
        self.muted_in: set[int] = set()
        self.closed_topics: set[tuple[int, int | None]] = set()
        self.gone_topics: set[tuple[int, int | None]] = set()
        self.gone_messages: set[int] = set()

    def shown(self, chat: int = 77) -> list[Message]:
        """The bot's messages that stand in a chat now."""
        with self.changed:
            return [message for message in self.messages if message.chat_id == chat and not message.deleted]

    def _on_send_message(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id, reply_to = self._writable(parameters), self._reply_to(parameters)
        text = self._text(parameters, "text", 4096)
        message = Message(self._number(), chat_id, text, reply_to, texts=[text])
        message.asks_for_reply = "force_reply" in parameters.get("reply_markup", "")
        return self._post(message, parameters)

    def _on_send_video(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id, reply_to = self._writable(parameters), self._reply_to(parameters)
        caption = self._text(parameters, "caption", 1024, required=False)
        content = self._video(parameters, "video")
        message = Message(self._number(), chat_id, caption, reply_to, video=content, texts=[caption])
        posted = self._post(message, parameters)
        return posted | {"video": self._file(parameters, content), "caption": caption}

    def _on_send_invoice(self, parameters: dict[str, Any]) -> dict[str, Any]:
        chat_id = self._writable(parameters)
        shown = stars.invoice(parameters)
        message = Message(self._number(), chat_id, shown["title"], invoice=shown, texts=[shown["title"]])
        return self._post(message, parameters)

    def _on_send_chat_action(self, parameters: dict[str, Any]) -> bool:
        self._chat(parameters)
        return True

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
        return self.shape(message) | {"video": self._file(media, content), "caption": caption}

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
        return self.shape(message)

    def _on_delete_message(self, parameters: dict[str, Any]) -> bool:
        self._find(parameters, "message to delete not found").deleted = True
        return True

    def _post(self, message: Message, parameters: dict[str, Any]) -> dict[str, Any]:
        message.buttons = rules.keyboard(parameters)
        message.thread = _thread(parameters)
        self.messages.append(message)
        return self.shape(message)

    def shape(self, message: Message) -> dict[str, Any]:
        """A message as Telegram describes it."""
        chat = {"id": message.chat_id, "type": "private" if message.chat_id > 0 else "supergroup"}
        topic = {"message_thread_id": message.thread, "is_topic_message": True} if message.thread else {}
        return (
            {
                "message_id": message.message_id,
                "date": int(time.time()),
                "chat": chat,
                "from": self._on_get_me({}),
            }
            | topic
            | ({"caption": message.text} if message.video else {"text": message.text})
        )

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
        if chat_id not in self.known_chats:
            raise Refused(400, "Bad Request: chat not found")
        return chat_id

    def _writable(self, parameters: dict[str, Any]) -> int:
        chat_id, place = self._chat(parameters), (int(parameters.get("chat_id") or 0), _thread(parameters))
        if chat_id in self.muted_in:
            raise Refused(400, "Bad Request: not enough rights to send text messages to the chat")
        if place in self.closed_topics:
            raise Refused(400, "Bad Request: TOPIC_CLOSED")
        if place in self.gone_topics:
            raise Refused(400, "Bad Request: message thread not found")
        return chat_id

    def _reply_to(self, parameters: dict[str, Any]) -> int | None:
        """What is replied to; outside of topics it may be gone, if the request allows it."""
        if "reply_parameters" not in parameters:
            return None
        asked = json.loads(parameters["reply_parameters"])
        if asked["message_id"] in self.gone_messages:
            if _thread(parameters) or not asked.get("allow_sending_without_reply"):
                raise Refused(400, "Bad Request: message to be replied not found")
            return None
        return int(asked["message_id"])

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


def _thread(parameters: dict[str, Any]) -> int | None:
    return int(parameters.get("message_thread_id") or 0) or None
