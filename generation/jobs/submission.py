"""A prompt becomes a job: checked, its credits held, in the queue; all of it in one transaction, or nothing."""

import hashlib
import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Required, TypedDict, Unpack

import re2
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext, gettext_noop, ngettext

from accounts import ledger
from accounts.ledger import InsufficientBalance
from accounts.models import Ban, CreditAccount, User, UserLimits
from accounts.spelling import BLANKS, skeletons, spelt_out, unmasked
from generation import errors
from generation.jobs import catalog, enqueue, events, limits
from generation.models import BlockedPrompt, GenerationJob, Preset

logger = logging.getLogger(__name__)

MAX_IDEMPOTENCY_KEY = 255
MAX_SEED = 2**31 - 1
# Stored in English, translated where they are shown.
HELD = gettext_noop("Held for a video")
MADE_AGAIN = "Made again by staff"


class VideoRequest(TypedDict, total=False):
    """A video as one asks for it, named as in `GenerationJob`.

    Without `preset` the default one is made, without `seed` a random one is drawn. `model` and `size` must be on offer
    (`catalog.Offer`); empty, any node will do.
    """

    prompt: Required[str]
    preset: Preset | None
    seed: int | None
    negative_prompt: str
    model: str
    size: str
    remixed_from: GenerationJob | None


def same_again(job: GenerationJob) -> VideoRequest:
    """Ask for the same video again, its seed included."""
    return VideoRequest(
        prompt=job.prompt,
        preset=job.preset,
        seed=job.seed,
        negative_prompt=job.negative_prompt,
        model=job.model,
        size=job.size,
    )


def submit(
    *,
    user: User,
    source: str,
    idempotency_key: str | None = None,
    retry: bool = False,
    **request: Unpack[VideoRequest],
) -> GenerationJob:
    """Accept a request: hold its credits and put it in the queue.

    `retry`: what came to nothing is asked for once more, so its preset may have been withdrawn since.

    The wallet's row is locked first, so that two requests of one user run one after the other: a twin with the same
    idempotency key waits and gets the same job. A refusal is not remembered.

    Raises:
        GenerationError: one of its subclasses; nothing was stored and nothing held.
    """
    key, digest = _check_idempotency_key(idempotency_key), _digest(request)
    with transaction.atomic():
        wallet = ledger.lock_account(user=user)
        if twin := _twin(user, key=key, digest=digest):
            return twin
        # Read after the lock: what was changed while it was waited for holds.
        user = User.objects.select_related("limits").get(pk=user.pk)
        if not user.is_active:
            raise errors.AccountInactive(Ban.words_for(user))
        agreed: UserLimits = getattr(user, "limits", None) or UserLimits(user=user)
        job = _job(user, agreed, request, retry=retry)
        job.source, job.idempotency_key, job.request_digest = source, key, digest
        limits.check(user, agreed)
        try:
            _queue([job], {user.pk: wallet}, reason=HELD)
        except InsufficientBalance as error:
            raise errors.InsufficientCredits(cost=job.cost, balance=error.balance) from None
    logger.info("job %s queued for user %s by %s", job.id.hex, user.pk, source)
    return job


def submit_again(
    jobs: Sequence[GenerationJob], *, wallets: Mapping[int, CreditAccount]
) -> list[GenerationJob]:
    """Queue jobs again for their owners, by staff and free, with the settings of their time and no check.

    wallets: by the id of the owner; the caller's transaction has locked them.
    """
    again = [
        GenerationJob(
            **same_again(job),
            user=job.user,
            **{name: getattr(job, name) for name in Preset.COPIED},
            source=GenerationJob.Source.STAFF,
            cost=0,
            # Every retry of a job has the same, so that there is one.
            idempotency_key=f"staff-retry:{job.id.hex}",
            remixed_from=job,
        )
        for job in jobs
    ]
    _queue(again, wallets, reason=MADE_AGAIN)
    return again


def _digest(request: VideoRequest) -> str:
    """Tell a repeated request from another one."""
    preset, original = request.get("preset"), request.get("remixed_from")
    values: list[object] = [request["prompt"], preset.name if preset else None, request.get("seed")]
    values += [request.get(name, "") for name in ("negative_prompt", "model", "size")]
    values.append(original.id.hex if original else None)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _twin(user: User, *, key: str | None, digest: str) -> GenerationJob | None:
    twin = GenerationJob.objects.filter(user=user, idempotency_key=key).first() if key else None
    if twin is not None and twin.request_digest != digest:
        raise errors.IdempotencyConflict()
    return twin


def _job(user: User, agreed: UserLimits, request: VideoRequest, *, retry: bool) -> GenerationJob:
    """Check what is asked for, and copy the preset as it is now."""
    preset = request.get("preset") or catalog.default_preset()
    if not preset.enabled and not retry:
        raise catalog.no_such_preset()
    cost = catalog.price(preset, limits.price_factor(user, agreed))
    job = GenerationJob(
        user=user,
        prompt=check_prompt(request["prompt"]),
        negative_prompt=_check_negative_prompt(request.get("negative_prompt", "")),
        preset=preset,
        **{name: getattr(preset, name) for name in Preset.COPIED},
        model=request.get("model", ""),
        size=request.get("size", ""),
        cost=cost,
        discount=max(0, catalog.price(preset, Decimal(1)) - cost),
        remixed_from=request.get("remixed_from"),
    )
    if (seed := request.get("seed")) is not None:
        job.seed = check_seed(seed)
    return job


def _queue(jobs: Sequence[GenerationJob], wallets: Mapping[int, CreditAccount], *, reason: str) -> None:
    ledger.reserve_each([(wallets[job.user_id], job.id, job.cost) for job in jobs], reason=reason)
    GenerationJob.objects.bulk_create(jobs)
    # Set by PostgreSQL's clock.
    deadlines = dict(
        GenerationJob.objects.filter(pk__in=[job.pk for job in jobs]).values_list("pk", "deadline_at")
    )
    for job in jobs:
        job.deadline_at = deadlines[job.pk]
    events.publish(*jobs)
    enqueue.dispatch()


# --- Text and numbers -------------------------------------------------------------------------------------------------


def check_prompt(prompt: str) -> str:
    """Return the prompt without surrounding space.

    Raises:
        InvalidPrompt: empty to the eye, too long, or with characters that no database text can hold.
        PromptBlocked: it is against the rules that staff keep.
    """
    prompt = _storable(prompt).strip()
    if not any(map(_is_visible, prompt)):
        raise errors.EmptyPrompt()
    if len(prompt) > settings.MAX_PROMPT_LENGTH:
        raise errors.PromptTooLong(n=settings.MAX_PROMPT_LENGTH)
    if broken := matching(prompt):
        raise errors.PromptBlocked(broken[0].explanation)
    return prompt


def check_seed(seed: int) -> int:
    """Raises InvalidSetting unless it is from 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        message = gettext("seed must be between 0 and %(maximum)s.")
        raise errors.InvalidSetting(message % {"maximum": MAX_SEED}, param="seed")
    return seed


def _check_idempotency_key(key: str | None) -> str | None:
    """Return the key, None for an empty one.

    Raises:
        InvalidSetting: it is too long, or could not be shown.
    """
    if not key:
        return None
    if len(key) > MAX_IDEMPOTENCY_KEY or not key.isprintable():
        raise errors.InvalidSetting(
            f"Idempotency-Key must be at most {MAX_IDEMPOTENCY_KEY} printable characters.",
            param="Idempotency-Key",
        )
    return key


def _check_negative_prompt(text: str) -> str:
    text = _storable(text).strip()
    if len(text) > settings.MAX_PROMPT_LENGTH:
        message = ngettext(
            "Negative prompt too long. Maximum %(n)s character.",
            "Negative prompt too long. Maximum %(n)s characters.",
            settings.MAX_PROMPT_LENGTH,
        )
        raise errors.InvalidSetting(message % {"n": settings.MAX_PROMPT_LENGTH}, param="negative_prompt")
    return text


def _is_visible(character: str) -> bool:
    """Check for a letter, digit, sign or symbol; marks, spaces and controls alone show nothing."""
    return unicodedata.category(character)[0] in "LNPS" and character not in BLANKS


def _storable(text: str) -> str:
    """PostgreSQL cannot store NUL, UTF-8 has no lone surrogates."""
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise errors.InvalidPrompt()
    return text


# --- Blocked words and patterns ---------------------------------------------------------------------------------------
# Patterns are RE2's: their time is linear in the prompt, whatever the pattern is.

# Memory for one compiled pattern, in bytes.
MAX_MEMORY = 1 << 20


class BadPattern(ValueError):
    """RE2 does not take this pattern; the message says why."""


def matching(prompt: str) -> list[BlockedPrompt]:
    """Find the rules that a prompt is against, by how it looks: letters in disguise count as what they pass for."""
    looks, letters = skeletons(prompt), spelt_out(prompt)
    texts = {unicodedata.normalize("NFKC", prompt).casefold(), unmasked(prompt)}
    return [
        rule
        for rule in BlockedPrompt.objects.filter(enabled=True)
        if (
            any(
                words in look or (letters and words.replace(" ", "") in letters)
                for words in skeletons(rule.text)
                for look in looks
            )
            if rule.kind == BlockedPrompt.Kind.WORDS
            else any(compiled(rule.text).search(text) is not None for text in texts)
        )
    ]


@lru_cache(maxsize=1000)
def compiled(pattern: str) -> "re2._Regexp[str]":
    """Raises BadPattern."""
    options = re2.Options()
    options.case_sensitive, options.max_mem, options.log_errors = False, MAX_MEMORY, False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        message = error.args[0] if error.args else "it is not understood"
        raise BadPattern(message.decode() if isinstance(message, bytes) else str(message)) from error
