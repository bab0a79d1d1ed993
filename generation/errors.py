"""Refusals: one family, one wording, for every channel.

Each class's `text` is its message unless one is given. A message is in the language that is active where it is made:
English for the API, the user's own on the site and in Telegram.
"""

import re
from typing import Any, ClassVar

from django.conf import settings
from django.utils.translation import gettext, gettext_noop, ngettext, ngettext_lazy
from django.utils.translation import gettext_lazy as _

# Part of what is stored: English there, translated where it is shown.
NOTHING_DEDUCTED = gettext_noop("No credits were deducted.")


def in_its_words(said: str) -> str:
    """Mark a node's own message for users as such: short, and without addresses that one could open."""
    line = re.sub(r"\S*(://|www\.)\S+", "…", said)
    return f"The GPU node says: “{line[:200]}”"


class GenerationError(Exception):
    """values: for the placeholders of the text, also kept as attributes."""

    text: ClassVar[Any] = _("The request could not be carried out.")
    code: ClassVar[str] = "invalid_request"
    param: str | None = None
    status: ClassVar[int] = 400

    def __init__(self, message: str | None = None, **values: object) -> None:
        self.message = message or str(self.text % values if values else self.text)
        super().__init__(self.message)
        vars(self).update(values)


class InvalidPrompt(GenerationError):
    text = _("The prompt has characters that cannot be stored.")
    code = "invalid_prompt"
    param = "prompt"


class EmptyPrompt(InvalidPrompt):
    text = _("Please write what the video should show.")
    code = "empty_prompt"


class PromptTooLong(InvalidPrompt):
    text = ngettext_lazy(
        "Prompt too long. Maximum %(n)s character.", "Prompt too long. Maximum %(n)s characters.", "n"
    )
    code = "prompt_too_long"


class InvalidSetting(GenerationError):
    """A setting that is no choice. `param` is its name."""


class UnknownPreset(GenerationError):
    text = _("There is no such preset.")
    code = "unknown_preset"
    param = "preset"


class UnknownModel(GenerationError):
    text = _("There is no such model. On offer: %(names)s.")
    code = "model_not_found"
    param = "model"


class AccountInactive(GenerationError):
    text = _("This account is not active.")
    code = "account_inactive"
    status = 403


class InsufficientCredits(GenerationError):
    code = "insufficient_credits"
    status = 402

    def __init__(self, *, cost: int, balance: int) -> None:
        needed = ngettext(
            "Insufficient credits. You need %(n)s credit to generate a video.",
            "Insufficient credits. You need %(n)s credits to generate a video.",
            cost,
        )
        have = ngettext("Your balance: %(n)s credit", "Your balance: %(n)s credits", balance)
        super().__init__(f"{needed % {'n': cost}} {have % {'n': balance}}")


class CooldownActive(GenerationError):
    text = ngettext_lazy(
        "Please wait %(seconds)s second before generating another video.",
        "Please wait %(seconds)s seconds before generating another video.",
        "seconds",
    )
    code = "cooldown_active"
    status = 429
    seconds: int


class TooManyAtOnce(GenerationError):
    text = ngettext_lazy(
        "You may have %(most)d video made at a time. Please wait until it is finished.",
        "You may have %(most)d videos made at the same time. Please wait until one is finished.",
        "most",
    )
    code = "too_many_at_once"
    status = 429


class DailyLimitReached(GenerationError):
    text = ngettext_lazy(
        "You may have %(most)d video made in 24 hours. The next one is possible in %(wait)s.",
        "You may have %(most)d videos made in 24 hours. The next one is possible in %(wait)s.",
        "most",
    )
    code = "daily_limit_reached"
    status = 429
    seconds: int


class PromptBlocked(GenerationError):
    text = _("This prompt is against the rules of this service.")
    code = "content_policy_violation"
    param = "prompt"

    def __init__(self, explanation: str = "") -> None:
        super().__init__(f"{explanation or self.text} {gettext(NOTHING_DEDUCTED)}")


class IdempotencyConflict(GenerationError):
    text = _("This Idempotency-Key was used before with another request.")
    code = "idempotency_conflict"
    status = 422


class JobNotFound(GenerationError):
    text = _("There is no such video.")
    code = "not_found"
    status = 404


class CannotCancel(GenerationError):
    text = _("This video can no longer be canceled: it is already finished.")
    code = "cannot_cancel"
    status = 409


class BeingStored(CannotCancel):
    text = _("This video can no longer be canceled: it is being stored.")


class CannotDelete(GenerationError):
    text = _("This video is still being made: cancel it first.")
    code = "cannot_delete"
    status = 409


class VideoNotReady(GenerationError):
    text = _("This video is not ready.")
    code = "video_not_ready"
    status = 409


class VideoGone(GenerationError):
    text = _("The file of this video is gone.")
    code = "video_gone"
    status = 410


def in_words(seconds: int) -> str:
    """Say a wait in the unit that people use for it."""
    if seconds < 120:
        return ngettext("%(number)d second", "%(number)d seconds", seconds) % {"number": seconds}
    if seconds < 7200:
        minutes = round(seconds / 60)
        return ngettext("%(number)d minute", "%(number)d minutes", minutes) % {"number": minutes}
    hours = round(seconds / 3600)
    return ngettext("%(number)d hour", "%(number)d hours", hours) % {"number": hours}


def deducted(fee: int = 0) -> str:
    """Say what a video cost that came to nothing."""
    text = ngettext("%(n)s credit was charged.", "%(n)s credits were charged.", fee)
    return text % {"n": fee} if fee else gettext(NOTHING_DEDUCTED)


def cancel_terms() -> str:
    """Say when a cancel costs something; empty where it never does."""
    text = gettext("From %(percent)d%% of the steps on, a cancel costs the share of the price that is made.")
    percent = settings.CANCEL_CHARGE_AFTER_PERCENT
    return text % {"percent": percent} if percent else ""


def reason_of(message: str, fee: int = 0) -> str:
    """Say why a video failed, from what is stored of it, and what it cost; in whole sentences."""
    message = message.strip()
    text = gettext(message) if message else ""
    if NOTHING_DEDUCTED in message:
        return text
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {deducted(fee)}"
