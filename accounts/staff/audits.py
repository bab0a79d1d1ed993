"""The books added up because somebody of the staff wants to know."""

import uuid

from django.db import transaction
from django_q.tasks import async_task

from accounts.models import AuditRun
from accounts.staff import log
from accounts.staff.clerks import Clerk


@transaction.atomic
def begin(*, clerk: Clerk, reason: str, once: uuid.UUID | None = None) -> None:
    """Have the books added up in the background. In the log it is about the audit that was the latest until then.

    Raises:
        NotPermitted: the clerk may not. DoneBefore: the form was carried out already.
    """
    clerk.must("accounts.run_audit")
    latest = AuditRun.objects.first() or clerk.user
    log.record(clerk=clerk, act="books.audit", subject=latest, reason=reason, once=once)
    async_task("accounts.audit.audit_and_keep")
