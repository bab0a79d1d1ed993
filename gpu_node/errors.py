"""Refusals of requests. Every message can be shown to a person."""

from typing import Literal

Code = Literal[
    "invalid_request",
    "invalid_api_key",
    "not_found",
    "method_not_allowed",
    "not_ready",  # the job has no clip (yet), or cannot be changed in the state it is in
    "request_too_large",
    "idempotency_key_reused",
    "queue_full",  # try again after `retry_after` seconds
    "internal_error",
    "unavailable",  # the node shuts down, or its model could not be loaded
    "disk_full",
]
# HTTP status, and OpenAI's type of error.
ANSWERS: dict[Code, tuple[int, str]] = {
    "invalid_request": (400, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "not_ready": (409, "invalid_request_error"),
    "request_too_large": (413, "invalid_request_error"),
    "idempotency_key_reused": (422, "invalid_request_error"),
    "queue_full": (429, "rate_limit_error"),
    "internal_error": (500, "server_error"),
    "unavailable": (503, "server_error"),
    "disk_full": (507, "server_error"),
}


class Refusal(Exception):
    """The request cannot be served; `code` is the reason for programs, `message` for people."""

    def __init__(
        self, code: Code, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status, self.type = ANSWERS[code]
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(Refusal):
    """The request itself is wrong: sending it again is no use."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__("invalid_request", message, param=param)
