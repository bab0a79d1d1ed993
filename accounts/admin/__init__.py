"""People, their credits and keys, and what staff did, for staff."""

from django.contrib import admin

from accounts.admin import access, audit_log, ledger, users

admin.site.index_title = "Home"

__all__ = ["access", "audit_log", "ledger", "users"]
