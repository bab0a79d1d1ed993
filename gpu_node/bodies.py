"""What a request brings along: its body as JSON or form, and the headers that change how it is served."""

import json
import re
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from gpu_node.errors import InvalidRequest

LONGEST_WAIT = 60
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")


async def read_json(request: Request) -> Any:
    """The body as JSON, whatever its content type says. Raises InvalidRequest."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error


async def read_json_or_form(request: Request) -> Any:
    """The body as JSON, or the fields of a form. Raises InvalidRequest."""
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        return await read_json(request)
    try:
        async with request.form(max_files=1, max_fields=100) as form:
            return {name: await _value(item) for name, item in form.items() if item != ""}
    except HTTPException as error:
        raise InvalidRequest(f"The form cannot be read: {error.detail}") from error


async def _value(item: UploadFile | str) -> str | bytes:
    """A field's text or a file's bytes. (A field left blank counts as left out: forms cannot send null.)"""
    return item if isinstance(item, str) else await item.read()


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header. Raises InvalidRequest when it is not 1 to 255 visible ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest(
            "Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return key


def preferred_wait(request: Request) -> int:
    """Seconds from `Prefer: wait=N` (RFC 7240), LONGEST_WAIT at most; 0 without it."""
    match = WAIT.search(request.headers.get("prefer", ""))
    return min(int(match[1]), LONGEST_WAIT) if match else 0
