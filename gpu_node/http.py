"""HTTP around the routes: the key, the bound on bodies, their reading, and refusals in the shape of each protocol."""

import hmac
import json
import re
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpu_node.errors import Code, InvalidRequest, Refusal

OPEN_PATHS = frozenset({"/health"})
LARGEST_BODY = 2**20
LARGEST_FORM = 16 * 2**20  # it may bring a picture
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
LONGEST_WAIT = 60
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")


class Gate:
    """ASGI middleware that asks for the key and bounds the body. `key` None: the node listens on loopback only."""

    def __init__(self, app: ASGIApp, *, key: str | None) -> None:
        self._app = app
        self._key = key.encode() if key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._is_allowed(scope["path"], headers):
            is_upload = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
            await self._app(scope, _bounded(receive, LARGEST_FORM if is_upload else LARGEST_BODY), send)
        else:
            message = "The API key is missing or wrong. Send it as x-api-key."
            refusal = Refusal(Code.invalid_api_key, message)
            await _response(scope["path"], refusal)(scope, receive, send)

    def _is_allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        shown = headers.get(b"x-api-key")
        if shown is None:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer":
                return False
        return hmac.compare_digest(shown.strip(), self._key)


def _bounded(receive: Receive, largest: int) -> Receive:
    """Return a receive that refuses the request once the body outgrows `largest` bytes, announced or not."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > largest:
            raise Refusal(Code.request_too_large, f"The request is larger than {largest} bytes.")
        return message

    return bounded


async def read_json(request: Request) -> Any:
    """Read the body as JSON, whatever its content type says. Raises InvalidRequest."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error


async def read_json_or_form(request: Request) -> Any:
    """Read the body as JSON, or the fields of a form: text, or a file's bytes. Raises InvalidRequest.

    A field left blank counts as left out: forms cannot send null.
    """
    if not request.headers.get("content-type", "").startswith(FORMS):
        return await read_json(request)
    try:
        async with request.form(max_files=1, max_fields=100) as form:
            return {
                name: item if isinstance(item, str) else await item.read()
                for name, item in form.items()
                if item != ""
            }
    except HTTPException as error:
        raise InvalidRequest(f"The form cannot be read: {error.detail}") from error


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key header. Raises InvalidRequest unless it is 1 to 255 visible ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return key


def preferred_wait(request: Request) -> int:
    """Return the seconds of `Prefer: wait=N` (RFC 7240), LONGEST_WAIT at most; 0 without it."""
    match = WAIT.search(request.headers.get("prefer", ""))
    return min(int(match[1]), LONGEST_WAIT) if match else 0


def handle_errors(app: FastAPI) -> None:
    """Answer every error in the shape of the protocol that the path belongs to."""
    for kind in (Refusal, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, (RequestValidationError, ValidationError)):
        problem = error.errors()[0]
        name = str(problem["loc"][-1]) if problem["loc"] else None
        message = str(problem["msg"]).removeprefix("Value error, ")
        refusal = InvalidRequest(f"{name}: {message}" if name else message, param=name)
    elif isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {error.detail}"
        refusal = Refusal(Code.method_not_allowed if error.status_code == 405 else Code.not_found, message)
        refusal.status = error.status_code
    else:
        refusal = Refusal(Code.internal_error, "The node failed to answer; its log says why.")
    if isinstance(refusal, InvalidRequest) and request.url.path == "/generate_video":
        refusal.status = 422  # as its clients in the field know it
    return _response(request.url.path, refusal)


def _response(path: str, refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body: dict[str, Any] = {"status": "error", "error": refusal.message}
    if path.startswith("/v1/"):
        other = "invalid_request_error" if refusal.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refusal.status, other)
        about = {"code": refusal.code.name, "message": refusal.message, "param": refusal.param, "type": kind}
        body = {"error": about}
    return JSONResponse(body, status_code=refusal.status, headers=headers)
