"""Users, credits, access and the audit log, for staff."""

from django.contrib import admin

from accounts.admin import access, audit_log, ledger, users

admin.site.index_title = "Home"

__all__ = ["access", "audit_log", "ledger", "users"]
