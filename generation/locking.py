"""The order in which rows are locked, by everything that writes them in one transaction:

    GPU node → attempt → job → stored file → wallet

and of several of one kind, by primary key. Two transactions that keep to it never wait for each other in a circle.
What begins in the middle (a step that is noted, a wallet that is granted credits) just never goes back to the left. A
row that the same transaction has just inserted is nobody else's yet and does not count. `tests/test_lock_order.py`
holds it; where it is broken nevertheless, PostgreSQL ends one of the two after a second, and that one is tried again.
"""

import uuid

from django.db import transaction
from django.db.models import QuerySet

from generation.models import GenerationJob, JobAttempt

# A job can get a new attempt between the look at its attempts and the lock of its row, JOB_MAX_ATTEMPTS times in all.
TRIES = 10


def lock_jobs(jobs: "QuerySet[GenerationJob]") -> list[uuid.UUID]:
    """Lock these jobs, their open attempts first, including one that is being opened just now; which they are."""
    for _ in range(TRIES):
        with transaction.atomic():
            locked = _lock_attempts_and_jobs(jobs)
            if locked is not None:
                return locked
            # Going back to the savepoint gives the locks back; the new attempt is there to be seen the next time.
            transaction.set_rollback(True)
    raise RuntimeError("jobs get new attempts faster than they can be locked")


def _lock_attempts_and_jobs(jobs: "QuerySet[GenerationJob]") -> list[uuid.UUID] | None:
    """The jobs; None when one of them got another attempt before it was locked."""
    attempts = _open().filter(job__in=jobs.values("pk")).order_by("pk").select_for_update(of=("self",))
    seen = set(attempts.values_list("pk", flat=True))
    rows = jobs.order_by("pk").select_for_update(no_key=True, of=("self",))
    locked = list(rows.values_list("pk", flat=True))
    now = set(_open().filter(job__in=locked).values_list("pk", flat=True))
    return locked if now <= seen else None


def _open() -> "QuerySet[JobAttempt]":
    return JobAttempt.objects.filter(state=JobAttempt.State.OPEN)
