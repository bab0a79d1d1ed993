"""A circuit breaker for nodes: one that fails again and again is set aside, and trial clips decide when it
is back.

Without it, a node that fails fast would win every job, because it is always the least loaded.
"""

import logging
import uuid

from django.conf import settings
from django.db.models import F, QuerySet
from django.db.models.functions import Now

from generation import leases
from generation.models import GpuNode, JobAttempt

logger = logging.getLogger(__name__)

# Each failed trial doubles the pause, up to this many times NODE_TRIAL_SECONDS.
LONGEST_PAUSE = 16


def count_failure(held: "QuerySet[JobAttempt]", *, error: str) -> None:
    """An attempt came to nothing by its node's fault. `held`: it, as long as its driver holds the lease.

    Call it before the attempt is closed, in the same transaction.
    """
    blamed = GpuNode.objects.filter(attempts__in=held)
    if not blamed.update(consecutive_failures=F("consecutive_failures") + 1):
        return
    worn_out = blamed.filter(set_aside_at=None, consecutive_failures__gte=settings.NODE_FAILURES_TO_SET_ASIDE)
    if worn_out.update(
        set_aside_at=Now(),
        set_aside_reason=f"{settings.NODE_FAILURES_TO_SET_ASIDE} failures in a row, the last: {error}"[:300],
        trials=0,
        next_trial_at=leases.until(settings.NODE_TRIAL_SECONDS),
    ):
        logger.warning("node %s is set aside: %s", blamed.values_list("name", flat=True).first(), error)


def count_success(*, attempt_id: uuid.UUID) -> None:
    """It made a playable clip.

    Writes only where there was a failure before: the row is not touched for every clip.
    """
    GpuNode.objects.filter(attempts=attempt_id, consecutive_failures__gt=0).update(consecutive_failures=0)


def claim_trial(node: GpuNode) -> bool:
    """Become the one who tries a set-aside node now; the next trial is due when a failed one has been told."""
    due = GpuNode.objects.filter(
        pk=node.pk, enabled=True, set_aside_at__isnull=False, next_trial_at__lt=Now()
    )
    pause = settings.NODE_TRIAL_SECONDS * min(LONGEST_PAUSE, 2 ** min(node.trials, 16))
    return bool(due.update(trials=F("trials") + 1, next_trial_at=leases.until(pause)))


def bring_back(node: GpuNode) -> None:
    """It gets jobs again, with a clean record."""
    GpuNode.objects.filter(pk=node.pk).update(
        set_aside_at=None, set_aside_reason="", consecutive_failures=0, trials=0, next_trial_at=None
    )
    logger.info("node %s is back", node.name)


def note_failed_trial(node: GpuNode, error: Exception) -> None:
    """Staff see why it is still set aside."""
    GpuNode.objects.filter(pk=node.pk, set_aside_at__isnull=False).update(
        set_aside_reason=f"The trial clip failed: {error}"[:300]
    )
    logger.warning("node %s: trial clip failed: %s", node.name, error)
