"""Refusals of requests. Every message can be shown to a person."""


class Refusal(Exception):
    """The request cannot be served; `status` is the HTTP status, `code` the reason for programs."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(Refusal):
    """The request itself is wrong: sending it again is no use."""

    status, code, type = 400, "invalid_request", "invalid_request_error"


class Unauthorized(InvalidRequest):
    """The key is missing or wrong."""

    status, code, type = 401, "invalid_api_key", "authentication_error"


class NotFound(InvalidRequest):
    """There is no such job, clip or page."""

    status, code = 404, "not_found"


class NotAllowed(InvalidRequest):
    """The path exists, but not with this method."""

    status, code = 405, "method_not_allowed"


class NotReady(InvalidRequest):
    """The job has no clip (yet), or cannot be changed in the state it is in."""

    status, code = 409, "not_ready"


class TooLarge(InvalidRequest):
    """The body is larger than any valid request."""

    status, code = 413, "request_too_large"


class KeyReused(InvalidRequest):
    """The Idempotency-Key was already used for another request."""

    status, code = 422, "idempotency_key_reused"


class Busy(Refusal):
    """The queue is full: try again after `retry_after` seconds."""

    status, code, type = 429, "queue_full", "rate_limit_error"


class Unavailable(Refusal):
    """The node takes no jobs now: it is shutting down, or its model could not be loaded."""

    status, code = 503, "unavailable"


class DiskFull(Refusal):
    """The node has too little free disk space to make a clip."""

    status, code = 507, "disk_full"
