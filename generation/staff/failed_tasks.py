"""Background tasks that failed and that staff have run again."""

import uuid

from django.db import transaction
from django_q.models import Failure
from django_q.tasks import async_task

from accounts.staff import log
from accounts.staff.clerks import Clerk


@transaction.atomic
def run_again(*, clerk: Clerk, task: Failure, reason: str, once: uuid.UUID | None = None) -> None:
    """Queue a failed task anew; the failure is forgotten, and if it fails again it comes back.

    Raises:
        NotPermitted: the clerk may not. DoneBefore: the form was carried out already.
    """
    clerk.must("django_q.change_failure")
    before = {"task": task.func, "error": str(task.result)[:500]}
    log.record(clerk=clerk, act="task.run_again", subject=task, reason=reason, before=before, once=once)
    if Failure.objects.filter(pk=task.pk).delete()[0]:
        async_task(task.func, *task.args or (), **task.kwargs or {})
