"""People, their credits and keys, and what staff did, for staff."""

from django.contrib import admin

from accounts.admin import acts, api_keys, audits, authenticators, groups, transactions, users

admin.site.index_title = "Home"

__all__ = ["acts", "api_keys", "audits", "authenticators", "groups", "transactions", "users"]
