"""What every request must pass before a route sees it: the key, and a bound on the body."""

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_node.answers import refusal_response
from gpu_node.errors import TooLarge, Unauthorized

OPEN_PATHS = frozenset({"/health"})
LARGEST_BODY = 2**20
LARGEST_FORM = 16 * 2**20  # it may bring a picture


class Gate:
    """ASGI middleware. `key` None means that none is configured: the node then listens on loopback only."""

    def __init__(self, app: ASGIApp, *, key: str | None) -> None:
        self._app = app
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._is_allowed(scope):
            await self._app(scope, _bounded(receive, _largest(scope)), send)
        else:
            refusal = Unauthorized("The API key is missing or wrong. Send it as x-api-key.")
            await refusal_response(scope["path"], refusal)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._key is None or scope["path"] in OPEN_PATHS:
            return True
        headers = dict(scope["headers"])
        shown = headers.get(b"x-api-key")
        if shown is None:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return False
        return hmac.compare_digest(shown.strip(), self._key)


def _largest(scope: Scope) -> int:
    content_type = dict(scope["headers"]).get(b"content-type", b"")
    return LARGEST_FORM if content_type.startswith(b"multipart/form-data") else LARGEST_BODY


def _bounded(receive: Receive, largest: int) -> Receive:
    """Receive that raises TooLarge once the body outgrows `largest` bytes, announced or not."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > largest:
            raise TooLarge(f"The request is larger than {largest} bytes.")
        return message

    return bounded
