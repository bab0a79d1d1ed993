"""Users, credits, access and the audit log, for staff."""

from django.contrib import admin

from accounts.admin import access, approvals, audit_log, ledger, users

admin.site.index_title = "Home"

__all__ = ["access", "approvals", "audit_log", "ledger", "users"]
