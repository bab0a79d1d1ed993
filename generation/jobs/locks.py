"""Row locks in one order, and the leases by which one process at a time drives an open attempt.

Rows are locked in this order by everything that writes them in one transaction, and several of one kind by primary key:

    GPU node → attempt → job → stored file → wallet → delivery

Two transactions that keep to it never wait for each other in a circle. One that begins in the middle (a step that is
noted, a wallet that is granted credits) just never goes back to the left. A row that the same transaction has just
inserted does not count: no other can lock it. `tests/test_lock_order.py` holds it; where it is broken nevertheless,
PostgreSQL ends one of the two after a second, and that one is tried again.

A lease lasts for LEASE_SECONDS. An expired one moves nothing by itself: the next holder asks the node for the same id
and goes on. PostgreSQL's clock decides when that is, never a host's.
"""

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.conf import settings
from django.db import close_old_connections, connections, transaction
from django.db.models import Q, QuerySet
from django.db.models.expressions import Combinable
from django.db.models.functions import Now

from generation.database import DATABASE_AWAY
from generation.models import GenerationJob, JobAttempt

logger = logging.getLogger(__name__)

# A job can get a new attempt between the look at its attempts and the lock of its row, JOB_MAX_ATTEMPTS times in all.
TRIES = 10


def lock_jobs(jobs: "QuerySet[GenerationJob]") -> list[uuid.UUID]:
    """Lock these jobs, their open attempts first, including one that is being opened just now; returns their ids."""
    for _ in range(TRIES):
        with transaction.atomic():
            locked = _lock_attempts_and_jobs(jobs)
            if locked is not None:
                return locked
            # Going back to the savepoint gives the locks back; the new attempt is there to be seen the next time.
            transaction.set_rollback(True)
    raise RuntimeError("jobs get new attempts faster than they can be locked")


def _lock_attempts_and_jobs(jobs: "QuerySet[GenerationJob]") -> list[uuid.UUID] | None:
    """Return the jobs; None when one of them got another attempt before it was locked."""
    attempts = _open().filter(job__in=jobs.values("pk")).order_by("pk").select_for_update(of=("self",))
    seen = set(attempts.values_list("pk", flat=True))
    rows = jobs.order_by("pk").select_for_update(no_key=True, of=("self",))
    locked = list(rows.values_list("pk", flat=True))
    now = set(_open().filter(job__in=locked).values_list("pk", flat=True))
    return locked if now <= seen else None


def _open() -> "QuerySet[JobAttempt]":
    return JobAttempt.objects.filter(state=JobAttempt.State.OPEN)


def take(*, attempt_id: uuid.UUID, token: uuid.UUID) -> bool:
    """Take or renew the lease; False when another token holds it, or the attempt is closed."""
    free = Q(lease_token=token) | Q(lease_token=None) | Q(lease_expires_at__lt=Now())
    return bool(_open().filter(free, pk=attempt_id).update(lease_token=token, lease_expires_at=until()))


def until(seconds: float | None = None) -> Combinable:
    """Add that many seconds to PostgreSQL's clock; LEASE_SECONDS by default."""
    return Now() + timedelta(seconds=settings.LEASE_SECONDS if seconds is None else seconds)


def held(*, attempt_id: uuid.UUID, token: uuid.UUID) -> QuerySet[JobAttempt]:
    """Select the attempt while it is open and the token's: the fence of every write about it."""
    return _open().filter(pk=attempt_id, lease_token=token)


def drop(*, attempt_id: uuid.UUID, token: uuid.UUID) -> None:
    held(attempt_id=attempt_id, token=token).update(lease_expires_at=Now())


def drop_all(*, token: uuid.UUID) -> None:
    _open().filter(lease_token=token).update(lease_expires_at=Now())


@contextmanager
def kept(*, attempt_id: uuid.UUID, token: uuid.UUID) -> Iterator[None]:
    """Renew the lease from a thread while the block runs, so that only the death of this process frees it."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(settings.LEASE_SECONDS / 3):
            try:
                close_old_connections()
                take(attempt_id=attempt_id, token=token)
            except DATABASE_AWAY as error:
                logger.warning("attempt %s: lease not renewed: %s", attempt_id.hex, str(error).strip())
        connections.close_all()  # this thread's own, which ends here

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
