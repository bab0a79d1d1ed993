"""Approvals, for staff: what waits for a second one of them, who approves or refuses it."""

from functools import partial

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin.audit_log import history_field
from accounts.admin.base import Question, ReadOnlyAdmin, badge, row_action
from accounts.models import Approval
from accounts.staff.actor import Actor
from accounts.staff.operations import settle, why_not_settle


@admin.register(Approval)
class ApprovalAdmin(ReadOnlyAdmin):
    """Operations that wait for a colleague, and those that were settled."""

    list_display = ("created_at", "actor", "act", "credits", "reason", "state")
    list_select_related = ("actor",)
    list_filter = ("approved", "act")
    history = history_field
    readonly_fields = ("state", "history")
    fields = ("state", "actor", "act", "summary", "credits", "reason", "created_at", "history")
    actions_detail = ("approve", "refuse")

    def has_settle_permission(self, request: HttpRequest, object_id: str) -> bool:
        row = self.get_object(request, object_id)
        return row is not None and Actor.of(request).may(row.permission)

    @display(description="State", ordering="approved")
    def state(self, row: Approval) -> SafeString:
        if row.approved is not None:
            return badge("Approved", "success") if row.approved else badge("Refused", "danger")
        return badge("Expired", "info") if why_not_settle(row) else badge("Waiting", "warning")

    @row_action("Approve", "settle", partial(settle, approved=True), icon="check", why_not=why_not_settle)
    def approve(self, row: Approval) -> Question:
        return f"{row.actor} asks for it ({row.reason}). {row.summary}", f"{row}: done ($reason)."

    @row_action("Refuse", "settle", partial(settle, approved=False), icon="close", why_not=why_not_settle)
    def refuse(self, row: Approval) -> Question:
        return f"{row.actor} asks for it ({row.reason}). {row.summary}", f"{row}: refused ($reason)."
