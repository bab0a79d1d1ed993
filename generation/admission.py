"""What may become a job, and when: the rules that `lifecycle.submit` holds a request against, for every door."""

import math

from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext, ngettext

from accounts.models import User
from generation import rules
from generation.errors import (
    AccountInactive,
    CooldownActive,
    EmptyPrompt,
    InvalidPrompt,
    InvalidSetting,
    PromptTooLong,
)
from generation.models import GenerationJob

MAX_IDEMPOTENCY_KEY = 255
MAX_SEED = 2**31 - 1


def check_account(user: User) -> None:
    """Raises AccountInactive for somebody who was banned since they signed in: the row is read afresh."""
    user.refresh_from_db(fields=["is_active", "is_staff"])
    if not user.is_active:
        raise AccountInactive()


def check_prompt(prompt: str) -> str:
    """The prompt without surrounding space.

    Raises:
        InvalidPrompt: empty, too long, or with characters that no database text can hold.
        PromptBlocked: it is against the rules that staff keep.
    """
    prompt = _check_text(prompt).strip()
    if not prompt:
        raise EmptyPrompt()
    if len(prompt) > settings.MAX_PROMPT_LENGTH:
        raise PromptTooLong(maximum=settings.MAX_PROMPT_LENGTH)
    rules.check(prompt)
    return prompt


def check_negative_prompt(text: str) -> str:
    """The same for what should not be seen, which may be empty."""
    text = _check_text(text).strip()
    if len(text) > settings.MAX_PROMPT_LENGTH:
        words = ngettext(  # English says the same of one; other languages do not
            "Negative prompt too long. Maximum %(n)s characters.",
            "Negative prompt too long. Maximum %(n)s characters.",
            settings.MAX_PROMPT_LENGTH,
        )
        raise InvalidSetting(words % {"n": settings.MAX_PROMPT_LENGTH}, param="negative_prompt")
    return text


def check_seed(seed: int) -> int:
    """Raises InvalidSetting unless it is from 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        words = gettext("seed must be between 0 and %(maximum)s.")
        raise InvalidSetting(words % {"maximum": MAX_SEED}, param="seed")
    return seed


def check_idempotency_key(key: str | None) -> str | None:
    """The key, None for an empty one.

    Raises:
        InvalidSetting: it is too long, or could not be shown.
    """
    if not key:
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY or not key.isprintable():
        raise InvalidSetting(
            f"Idempotency-Key must be at most {MAX_IDEMPOTENCY_KEY} printable characters.",
            param="Idempotency-Key",
        )
    return key


def check_cooldown(user: User) -> None:
    """Raises CooldownActive with the seconds that are left."""
    if seconds := cooldown_left(user):
        raise CooldownActive(seconds=seconds)


def cooldown_left(user: User) -> int:
    """Whole seconds until the user may submit again; 0 now.

    Counted from the last job that did not fail; staff never wait.
    """
    if user.is_staff:
        return 0
    counted = GenerationJob.objects.filter(user=user).exclude(state=GenerationJob.State.FAILED)
    ages = counted.order_by("-created_at").annotate(age=Now() - F("created_at"))
    latest = ages.values_list("age", "user__limits__cooldown_seconds").first()
    if latest is None:
        return 0
    age, agreed = latest
    seconds: int = settings.VIDEO_COOLDOWN_SECONDS if agreed is None else agreed
    waited: float = age.total_seconds()
    return max(0, math.ceil(seconds - waited))


def _check_text(text: str) -> str:
    """PostgreSQL cannot store NUL, UTF-8 has no lone surrogates."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidPrompt()
    return text
