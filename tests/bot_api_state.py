"""State that the parts of the tests' Bot API server share: the bot it serves, one lock, numbers."""

import threading
from typing import Any


class State:
    """Read and changed under `changed`, which is notified of changes."""

    def __init__(self, *, bot_id: int) -> None:
        self.bot_id = bot_id
        self.changed = threading.Condition(threading.RLock())
        self.known_chats: set[int] = set()
        self._next_message = 1

    def _number(self) -> int:
        self._next_message += 1
        return self._next_message

    def _on_get_me(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.bot_id, "is_bot": True, "first_name": "Videos", "username": "videos_test_bot"}
