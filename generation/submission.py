"""A prompt becomes a job: checked, its credits held, in the queue; all of it in one transaction, or nothing."""

import hashlib
import json
import logging
from collections.abc import Sequence

from django.db import transaction
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.errors import InsufficientBalance
from accounts.models import User
from generation import admission, events, limits, nudges, pricing
from generation.errors import IdempotencyConflict, InsufficientCredits
from generation.models import GenerationJob

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
    key, digest = admission.check_idempotency_key(idempotency_key), _digest(request)
    with transaction.atomic():
        ledger.lock_account(user=user)
        if twin := _twin(user, key=key, digest=digest):
            return twin
        admission.check_account(user)
        job = _new_job(user, prompt, preset=preset, seed=seed, negative_prompt=negative_prompt)
        job.source, job.remixed_from = source, remixed_from
        job.model, job.size = model, size
        job.idempotency_key, job.request_digest = key, digest
        admission.check_cooldown(user)
        limits.check(user)
        _reserve(job)
        job.save(force_insert=True)
        job.refresh_from_db(fields=["deadline_at"])  # set by PostgreSQL's clock
        events.publish(job)
        nudges.dispatch()
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
    chosen = pricing.find_preset(preset)
    job = GenerationJob(
        user=user,
        prompt=admission.check_prompt(prompt),
        negative_prompt=admission.check_negative_prompt(negative_prompt),
        preset=chosen,
        num_frames=chosen.num_frames,
        fps=chosen.fps,
        num_inference_steps=chosen.num_inference_steps,
        guidance_scale=chosen.guidance_scale,
        cost=pricing.price(preset=chosen, user=user),
    )
    if seed is not None:
        job.seed = admission.check_seed(seed)
    return job


def _reserve(job: GenerationJob) -> None:
    try:
        ledger.reserve(user=job.user, amount=job.cost, reference=job.id, reason=HELD)
    except InsufficientBalance as error:
        raise InsufficientCredits(cost=job.cost, balance=error.balance) from None
