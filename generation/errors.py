"""What a person can be told.

One family, one wording, for every door; each class's docstring is its message unless one is given.
"""

from typing import ClassVar

NOTHING_DEDUCTED = "No credits were deducted."


class GenerationError(Exception):
    """The request could not be carried out."""

    code: ClassVar[str] = "invalid_request"
    param: ClassVar[str | None] = None
    status: ClassVar[int] = 400

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.__doc__ or ""
        super().__init__(self.message)


class InvalidPrompt(GenerationError):
    """The prompt has characters that cannot be stored."""

    code = "invalid_prompt"
    param = "prompt"


class EmptyPrompt(InvalidPrompt):
    """Please write what the video should show."""

    code = "empty_prompt"


class PromptTooLong(InvalidPrompt):
    """The prompt is too long."""

    code = "prompt_too_long"

    def __init__(self, *, maximum: int) -> None:
        super().__init__(f"Prompt too long. Maximum {maximum} characters.")


class InvalidSetting(GenerationError):
    """A setting of the request is not valid."""

    def __init__(self, message: str, *, param: str | None) -> None:
        super().__init__(message)
        self.param = param  # type: ignore[misc]  # the one class whose field differs by instance


class UnknownPreset(GenerationError):
    """There is no such preset."""

    code = "unknown_preset"
    param = "preset"


class UnknownModel(GenerationError):
    """There is no such model."""

    code = "model_not_found"
    param = "model"

    def __init__(self, on_offer: list[str]) -> None:
        names = ", ".join(on_offer) or "none yet, no GPU node was reached"
        super().__init__(f"There is no such model. On offer: {names}.")


class AccountInactive(GenerationError):
    """This account is not active."""

    code = "account_inactive"
    status = 403


class InsufficientCredits(GenerationError):
    """Insufficient credits."""

    code = "insufficient_credits"
    status = 402

    def __init__(self, *, cost: int, balance: int) -> None:
        super().__init__(
            f"Insufficient credits. You need {cost} credits to generate a video. Your balance: {balance} credits"
        )
        self.cost = cost
        self.balance = balance


class CooldownActive(GenerationError):
    """Please wait before generating another video."""

    code = "cooldown_active"
    status = 429

    def __init__(self, *, seconds: int) -> None:
        super().__init__(f"Please wait {seconds} seconds before generating another video.")
        self.seconds = seconds


class IdempotencyConflict(GenerationError):
    """This Idempotency-Key was used before with another request."""

    code = "idempotency_conflict"
    status = 422


class JobNotFound(GenerationError):
    """There is no such video."""

    code = "not_found"
    status = 404


class CannotCancel(GenerationError):
    """This video can no longer be canceled: it is already finished."""

    code = "cannot_cancel"
    status = 409


class BeingStored(CannotCancel):
    """This video can no longer be canceled: it is being stored."""


class CannotDelete(GenerationError):
    """This video is still being made: cancel it first."""

    code = "cannot_delete"
    status = 409


class VideoNotReady(GenerationError):
    """This video is not ready."""

    code = "video_not_ready"
    status = 409


class VideoGone(GenerationError):
    """The file of this video is gone."""

    code = "video_gone"
    status = 410
