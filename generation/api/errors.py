"""Errors of the REST API, in one shape: `{"error": {"code", "message", "param", "type"}}`."""

import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.utils.encoding import iri_to_uri
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from accounts.limits import TooOften
from generation.api.auth import REALM
from generation.database import DATABASE_AWAY, RETRY_AFTER
from generation.errors import CooldownActive, DailyLimitReached, GenerationError

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

API_PREFIX = "/v1/"
TYPES = {
    401: "authentication_error",
    402: "insufficient_credits_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Problem:
    """An error response, independent of the framework that sends it."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        return {"error": {"code": self.code, "message": self.message, "param": self.param, "type": kind}}


# Every code of ours but those of GenerationError, which all channels share (generation/errors.py).
UNREADABLE = Problem(400, "invalid_request", "The request could not be read.")
SIGNED_OUT = Problem(401, "signed_out", "Please sign in.")
FORBIDDEN = Problem(403, "permission_denied", "This is not allowed.")
NOT_FOUND = Problem(404, "not_found", "There is no such video.")
TOO_MANY_CONNECTIONS = Problem(
    429, "too_many_connections", "Your network has too many connections open.", headers=RETRY_AFTER
)
TOO_SLOW = Problem(408, "request_timeout", "The request did not arrive in time.")
PRECONDITION_FAILED = Problem(412, "precondition_failed", "The file is not the one this request is for.")
TOO_LARGE = Problem(413, "request_too_large", "The request is too large.")
UNSATISFIABLE_RANGE = Problem(416, "range_not_satisfiable", "This range begins behind the end of the file.")
BROKEN = Problem(500, "server_error", "Something went wrong on our side.")
UNAVAILABLE = Problem(
    503,
    "unavailable",
    "The service is very busy or cannot reach its database. Please try again in a few seconds.",
    headers=RETRY_AFTER,
)


def handle(error: Exception, context: dict[str, Any]) -> Response:
    """Give every exception of the API its response: REST framework's EXCEPTION_HANDLER."""
    set_rollback()
    problem = describe(error)
    if problem.status >= 500:
        request = context["request"]
        # The path is decoded: a line's end in it must not begin a line of the log.
        logger.error("%s %s failed", request.method, iri_to_uri(request.path), exc_info=error)
    return Response(problem.body, status=problem.status, headers=problem.headers)


def describe(error: Exception) -> Problem:
    """Describe an exception to the caller; an unforeseen one is a 500 that tells nothing of our insides."""
    match error:
        case GenerationError():
            headers = {}
            if isinstance(error, CooldownActive | DailyLimitReached):
                headers["Retry-After"] = str(error.seconds)
            if error.status == 409:
                # OpenAI's SDK repeats a 409 by itself; repeating these changes nothing.
                headers["x-should-retry"] = "false"
            return Problem(error.status, error.code, error.message, error.param, headers)
        case TooOften():
            text = f"Too many requests. Please wait {error.seconds} s."
            return Problem(429, "rate_limit_exceeded", text, headers={"Retry-After": str(error.seconds)})
        case exceptions.ValidationError():
            return _first_of(error)
        case exceptions.APIException():
            code = getattr(error.detail, "code", error.default_code)
            headers = {"WWW-Authenticate": REALM} if error.status_code == 401 else {}
            return Problem(error.status_code, str(code), str(error.detail), headers=headers)
        case Http404():
            return NOT_FOUND
        case PermissionDenied():
            return FORBIDDEN
        case RequestDataTooBig():
            return TOO_LARGE
        case SuspiciousOperation() | BadRequest():
            return UNREADABLE
    return UNAVAILABLE if isinstance(error, DATABASE_AWAY) else BROKEN


def _first_of(error: exceptions.ValidationError) -> Problem:
    """Describe the first of a serializer's errors: one at a time, as OpenAI's API does."""
    detail: Any = error.detail
    path: list[str] = []
    while isinstance(detail, dict | list) and detail:
        if isinstance(detail, dict):
            name, detail = next(iter(detail.items()))
            path.append(str(name))
        else:
            detail = detail[0]
    param = ".".join(name for name in path if name != "non_field_errors") or None
    message = f"{param}: {detail}" if param else str(detail)
    return Problem(error.status_code, "invalid_request", message, param)


# --- Errors outside of any view: middleware, unknown hosts. The rest of the site has its own pages. -------------------


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer as Django's handler400."""
    return answer(request.path, UNREADABLE, request=request)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer what no view and no middleware caught, as Django's handler500; 503 for what will work a little later."""
    error = sys.exc_info()[1]  # Django calls this while it handles the exception, and does not pass it on
    if isinstance(error, DATABASE_AWAY):
        return answer(request.path, UNAVAILABLE)
    return answer(request.path, BROKEN, request=request)


def answer(path: str, problem: Problem, *, request: HttpRequest | None = None) -> HttpResponse:
    """Make the response for this path: JSON of the API, or a page of the site; the page has the menu of a `request`."""
    if path.startswith(API_PREFIX):
        return JsonResponse(problem.body, status=problem.status, headers=problem.headers)
    template = f"{problem.status}.html"
    try:
        # Refused before it was known whose request it is, its page must not look as if the visitor were signed out.
        page = render_to_string(template, request=request if hasattr(request, "user") else None)
    except Exception:
        # What broke the page may break the menu as well.
        logger.exception("%s could not be rendered with the menu", template)
        page = render_to_string(template)
    return HttpResponse(page, status=problem.status, headers=problem.headers)


async def refuse(problem: Problem, scope: Message, receive: Receive, send: Send) -> None:
    """Answer any request with this problem and close its connection: an ASGI app, but for the first argument."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # before it is accepted: the server answers 403
        return
    response = answer(scope["path"], problem)
    response["Connection"] = "close"  # the rest of a body is not read
    await send_response(response, send)


async def send_response(response: HttpResponse, send: Send) -> None:
    """Send a whole response from an ASGI layer in front of Django."""
    response["Content-Length"] = str(len(response.content))
    headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})
