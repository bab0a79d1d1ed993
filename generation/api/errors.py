"""Every refusal of the REST API in one shape: `{"error": {"code", "message", "param", "type"}}`."""

import logging
import sys
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.utils.encoding import iri_to_uri
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from generation.api.auth import REALM
from generation.database import DATABASE_AWAY, RETRY_AFTER
from generation.errors import CooldownActive, DailyLimitReached, GenerationError, JobNotFound

logger = logging.getLogger(__name__)

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
    """One refusal, ready to be written."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        return {"error": {"code": self.code, "message": self.message, "param": self.param, "type": kind}}


def handle(error: Exception, context: dict[str, Any]) -> Response:
    """REST framework's EXCEPTION_HANDLER: nothing leaves the API in another shape."""
    set_rollback()
    problem = describe(error)
    if problem.status >= 500:
        request = context["request"]
        # The path is decoded: a line's end in it must not begin a line of the log.
        logger.error("%s %s failed", request.method, iri_to_uri(request.path), exc_info=error)
    return Response(problem.body, status=problem.status, headers=problem.headers)


def describe(error: Exception) -> Problem:
    """What the caller is told of an exception; what nobody foresaw is a 500 that tells nothing of our insides."""
    match error:
        case GenerationError():
            return _refusal(error)
        case exceptions.ValidationError():
            return _invalid(error)
        case exceptions.APIException():
            return _rest_error(error)
        case Http404():
            return Problem(404, "not_found", JobNotFound().message)
        case PermissionDenied():
            return Problem(403, "permission_denied", "This is not allowed.")
        case RequestDataTooBig():
            return Problem(413, "request_too_large", "The request is too large.")
        case SuspiciousOperation() | BadRequest():
            return Problem(400, "invalid_request", "The request could not be read.")
    if isinstance(error, DATABASE_AWAY):
        message = "The service is very busy or cannot reach its database. Please try again in a few seconds."
        return Problem(503, "unavailable", message, headers=RETRY_AFTER)
    return Problem(500, "server_error", "Something went wrong on our side.")


def _refusal(error: GenerationError) -> Problem:
    headers = {}
    if isinstance(error, CooldownActive | DailyLimitReached):
        headers["Retry-After"] = str(error.seconds)
    if error.status == 409:
        # OpenAI's SDK repeats a 409 by itself; repeating these changes nothing.
        headers["x-should-retry"] = "false"
    return Problem(error.status, error.code, error.message, error.param, headers)


def _invalid(error: exceptions.ValidationError) -> Problem:
    """The first of a serializer's errors: one thing to mend at a time, as OpenAI's API does."""
    detail: Any = error.detail
    path: list[str] = []
    while isinstance(detail, dict | list) and detail:
        if isinstance(detail, dict):
            name, detail = next(iter(detail.items()))
            path.append(str(name))
        else:
            detail = detail[0]
    names = [name for name in path if name != "non_field_errors"]
    param = ".".join(names) or None
    return Problem(
        error.status_code, "invalid_request", f"{param}: {detail}" if param else str(detail), param
    )


def _rest_error(error: exceptions.APIException) -> Problem:
    code = error.detail.code if isinstance(error.detail, exceptions.ErrorDetail) else error.default_code
    headers = {"WWW-Authenticate": REALM} if error.status_code == 401 else {}
    return Problem(error.status_code, str(code), str(error.detail), headers=headers)


# --- For errors outside of any view: middleware, unknown hosts. The rest of the site has its own pages. ---------------


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400."""
    if not request.path.startswith(API_PREFIX):
        return defaults.bad_request(request, exception)
    return _json(describe(SuspiciousOperation()))


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500: what no view and no middleware caught. 503 for what will work a little later."""
    error = sys.exc_info()[1]  # Django calls this while it handles the exception, and does not pass it on
    return answer(request.path, describe(error if isinstance(error, DATABASE_AWAY) else Exception()))


def answer(path: str, problem: Problem) -> HttpResponse:
    """A problem in the language of who asked at this path: JSON of the API, or a page of the site."""
    if path.startswith(API_PREFIX):
        return _json(problem)
    page = render_to_string(f"{problem.status}.html")
    return HttpResponse(page, status=problem.status, headers=problem.headers)


def _json(problem: Problem) -> JsonResponse:
    return JsonResponse(problem.body, status=problem.status, headers=problem.headers)
