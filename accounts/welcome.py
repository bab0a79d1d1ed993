"""The credits that every new user starts with: once an identity, and a limited number a day for users without one.

The ledger itself remembers: a grant's external id is a keyed hash of the identity, and stays when the account is gone.
"""

import hmac
from contextlib import suppress
from hashlib import sha256

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet, Sum
from django.utils.translation import gettext_noop

from accounts import ledger, limits
from accounts.models import CreditAccount, CreditTransaction, User

PREFIX = "signup:"
Kind = CreditTransaction.Kind


def give_at_signup(user: User) -> None:
    """Give what a new user starts with, by the way they came: `user.came_by`.

    "telegram:<id>" is an identity, an address of the network is none, and empty is a user made by staff or a program.
    """
    identity, amount = f"user:{user.pk}", settings.SIGNUP_CREDITS
    try:
        if user.came_by.startswith("telegram:"):
            identity = user.came_by
        elif user.came_by:
            amount = settings.UNVERIFIED_SIGNUP_CREDITS
            if amount:
                limits.take("signup_grants", user.came_by)
        if amount and user.came_by:
            limits.take("signup_grants_of_all", "")
    except limits.TooOften:
        return
    _give(user, amount, identity)


def give_for_address(user: User, address: str) -> None:
    """Give what is left of the sign-up credits, now that the user has confirmed an address."""
    name, _, domain = address.lower().rpartition("@")
    # The same mailbox by many spellings.
    name = name.partition("+")[0]
    if domain in ("gmail.com", "googlemail.com"):
        name, domain = name.replace(".", ""), "gmail.com"
    account = CreditAccount.objects.get(user=user)
    if _brought(account):
        return
    had = granted(account).aggregate(total=Sum("posted_delta"))["total"] or 0
    _give(user, settings.SIGNUP_CREDITS - had, f"mail:{name}@{domain}")


def granted(account: CreditAccount) -> "QuerySet[CreditTransaction]":
    """Find the wallet's own sign-up credits."""
    return account.transactions.filter(kind=Kind.GRANT, external_id__startswith=PREFIX)


def has_had(account: CreditAccount) -> bool:
    """Look for sign-up credits of its own, or of another that came with an earlier merge."""
    return granted(account).exists() or _brought(account)


def _brought(account: CreditAccount) -> bool:
    return account.merges_in.filter(brought_welcome=True, undone_at=None).exists()


def _give(user: User, amount: int, identity: str) -> None:
    # Hashed by all keys, so that a new one opens nothing again: the ledger never forgets, and need not know who it was.
    ids = [
        PREFIX + hmac.new(key.encode(), identity.encode(), sha256).hexdigest()
        for key in settings.ENCRYPTION_KEYS
    ]
    if amount <= 0 or CreditTransaction.objects.filter(kind=Kind.GRANT, external_id__in=ids).exists():
        return
    # Refused where another account has the same identity at the same moment.
    with suppress(IntegrityError), transaction.atomic():
        ledger.grant(user=user, amount=amount, reason=gettext_noop("Welcome credits"), external_id=ids[0])
