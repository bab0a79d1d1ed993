"""The tables of users, wallets and the ledger, and of what staff do about them."""

from accounts.models.people import ApiKey, CreditAccount, CreditTransaction, RateLimit, User, WalletMerge
from accounts.models.staff import Approval, AuditEvent, AuditRun, Ban, Notice, SecurityEvent, UserLimits
