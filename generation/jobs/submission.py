"""A prompt becomes a job: checked, its credits held, in the queue; all of it in one transaction, or nothing."""

import hashlib
import json
import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import re2
from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext, gettext_noop, ngettext

from accounts import ledger
from accounts.ledger import InsufficientBalance
from accounts.models import User
from generation.errors import (
    AccountInactive,
    CooldownActive,
    EmptyPrompt,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidPrompt,
    InvalidSetting,
    PromptBlocked,
    PromptTooLong,
)
from generation.jobs import catalog, enqueue, events, limits
from generation.models import BlockedPrompt, GenerationJob

WORD = re.compile(r"\w+")
# Memory for one compiled pattern, in bytes.
MAX_MEMORY = 1 << 20


class BadPattern(ValueError):
    """RE2 does not take this pattern; the message says why."""


@dataclass(frozen=True)
class _Text:
    """A prompt as rules see it: `plain` for patterns, `words` with one space around each for words."""

    plain: str
    words: str


def check(prompt: str) -> None:
    """Raises PromptBlocked with the explanation of the first rule that the prompt is against."""
    if broken := matching(prompt):
        raise PromptBlocked(broken[0].explanation)


def matching(prompt: str) -> list[BlockedPrompt]:
    """Every enabled rule that the prompt is against."""
    rules = list(BlockedPrompt.objects.filter(enabled=True))
    text = _prepared(prompt) if rules else _Text("", "")
    return [rule for rule in rules if _is_against(text, rule)]


def compiled(pattern: str) -> "re2._Regexp[str]":
    """Raises BadPattern."""
    try:
        return _compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else "it is not understood"
        raise BadPattern(said.decode() if isinstance(said, bytes) else str(said)) from error


def normal(text: str) -> str:
    """So that looks do not matter: compatibility forms, case, and characters that nobody sees."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if unicodedata.category(character) != "Cf")


def _is_against(text: _Text, rule: BlockedPrompt) -> bool:
    if rule.kind == BlockedPrompt.Kind.WORDS:
        return f" {' '.join(WORD.findall(normal(rule.text)))} " in text.words
    return compiled(rule.text).search(text.plain) is not None


def _prepared(prompt: str) -> _Text:
    plain = normal(prompt)
    return _Text(plain=plain, words=f" {' '.join(WORD.findall(plain))} ")


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> "re2._Regexp[str]":
    options = re2.Options()
    options.case_sensitive, options.max_mem, options.log_errors = False, MAX_MEMORY, False
    return re2.compile(pattern, options)


# What may become a job, and when: the rules that `lifecycle.submit` holds a request against, for every door.


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
    check(prompt)
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


# What must not be asked for: words and patterns that staff keep, held against every prompt by `admission`.
#
# Patterns are RE2's, whose time is linear in the prompt whatever somebody writes as a pattern.
#


logger = logging.getLogger(__name__)

# Stored in English, translated where it is shown.
HELD = gettext_noop("Held for a video")


def submit(
    *,
    user: User,
    prompt: str,
    source: str,
    preset: str | None = None,
    seed: int | None = None,
    negative_prompt: str = "",
    model: str = "",
    size: str = "",
    idempotency_key: str | None = None,
    remixed_from: GenerationJob | None = None,
) -> GenerationJob:
    """Accept a prompt: hold its credits and put it in the queue.

    `model` and `size` must be on offer (`offer.Offer`); empty, any node will do.

    The wallet's row is locked first, so that two requests of one person run one after the other: a twin
    with the same idempotency key waits and gets the same job. A refusal is not remembered.

    Raises:
        GenerationError: one of its subclasses; nothing was stored and nothing held.
    """
    original = remixed_from.id.hex if remixed_from else None
    request = [prompt, preset, seed, negative_prompt, model, size, original]
    key, digest = check_idempotency_key(idempotency_key), _digest(request)
    with transaction.atomic():
        ledger.lock_account(user=user)
        if twin := _twin(user, key=key, digest=digest):
            return twin
        check_account(user)
        job = _new_job(user, prompt, preset=preset, seed=seed, negative_prompt=negative_prompt)
        job.source, job.remixed_from = source, remixed_from
        job.model, job.size = model, size
        job.idempotency_key, job.request_digest = key, digest
        check_cooldown(user)
        limits.check(user)
        _reserve(job)
        job.save(force_insert=True)
        job.refresh_from_db(fields=["deadline_at"])  # set by PostgreSQL's clock
        events.publish(job)
        enqueue.dispatch()
    logger.info("job %s queued for user %s by %s", job.id.hex, user.pk, source)
    return job


def _digest(request: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()


def _twin(user: User, *, key: str | None, digest: str) -> GenerationJob | None:
    """The job this very request made before."""
    twin = GenerationJob.objects.filter(user=user, idempotency_key=key).first() if key else None
    if twin is not None and twin.request_digest != digest:
        raise IdempotencyConflict()
    return twin


def _new_job(
    user: User, prompt: str, *, preset: str | None, seed: int | None, negative_prompt: str
) -> GenerationJob:
    """What is to be made, checked, with what the preset says now."""
    chosen = catalog.find_preset(preset)
    job = GenerationJob(
        user=user,
        prompt=check_prompt(prompt),
        negative_prompt=check_negative_prompt(negative_prompt),
        preset=chosen,
        num_frames=chosen.num_frames,
        fps=chosen.fps,
        num_inference_steps=chosen.num_inference_steps,
        guidance_scale=chosen.guidance_scale,
        cost=catalog.price(preset=chosen, user=user),
    )
    if seed is not None:
        job.seed = check_seed(seed)
    return job


def _reserve(job: GenerationJob) -> None:
    try:
        ledger.reserve(user=job.user, amount=job.cost, reference=job.id, reason=HELD)
    except InsufficientBalance as error:
        raise InsufficientCredits(cost=job.cost, balance=error.balance) from None
