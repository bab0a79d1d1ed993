"""Whether the books are right: each time they were added up, and a button to have it done now."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import action, display

from accounts.admin_pages import ReadOnlyAdmin, ask, badge
from accounts.staff import audits
from accounts.staff.clerks import Clerk
from accounts.staff.models import AuditRun


@admin.register(AuditRun)
class AuditRunAdmin(ReadOnlyAdmin):
    list_display = ("at", "verdict", "accounts", "entries", "seconds")
    fields = ("at", "verdict", "sentences", "accounts", "entries", "seconds")
    actions_list = ("run_now",)

    @display(description="Result")
    def verdict(self, run: AuditRun) -> SafeString:
        words = f"{run.found} discrepancies" if run.found else "The books are right"
        return badge(bool(run.found), words, {False: "success", True: "danger"})

    @display(description="Discrepancies")
    def sentences(self, run: AuditRun) -> SafeString | str:
        lines = format_html_join("", "<li>{}</li>", ((sentence,) for sentence in run.discrepancies))
        return format_html("<ul>{}</ul>", lines) if run.found else "none"

    def has_run_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Clerk.of(request).may("accounts.run_audit")

    @action(description="Add the books up now", url_path="run", permissions=["run"], icon="calculate")
    def run_now(self, request: HttpRequest) -> HttpResponse:
        def begin(clerk: Clerk, wish: dict[str, Any]) -> str:
            audits.begin(clerk=clerk, **wish)
            return "The books are being added up. The result appears here when it is done."

        return ask(
            self,
            request,
            AuditRun.objects.none(),
            title="Add the books up",
            explanation="Every wallet is added up again, from the entries alone. It only reads.",
            act=begin,
            initial={"reason": "Are they right?"},
            back=reverse("admin:accounts_auditrun_changelist"),
        )
