"""Refusals of requests. Every message can be shown to a person."""

from enum import IntEnum


class Code(IntEnum):
    """Reason of a refusal: the name for programs, the value as HTTP status."""

    invalid_request = 400
    invalid_api_key = 401
    not_found = 404
    method_not_allowed = 405
    not_ready = 409  # the job has no clip (yet), or cannot be changed in the state it is in
    request_too_large = 413
    idempotency_key_reused = 422
    queue_full = 429  # try again after `retry_after` seconds
    internal_error = 500
    unavailable = 503  # the node shuts down, or its model could not be loaded
    disk_full = 507


class Refusal(Exception):
    """The request cannot be served; `code` is the reason for programs, `message` for people."""

    def __init__(
        self, code: Code, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: int = code
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(Refusal):
    """The request itself is wrong: sending it again is no use."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(Code.invalid_request, message, param=param)
