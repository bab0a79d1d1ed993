"""People, their credits and keys, and what staff did, for staff."""

from accounts.admin import acts, api_keys, audits, authenticators, groups, transactions, users

__all__ = ["acts", "api_keys", "audits", "authenticators", "groups", "transactions", "users"]
