"""Signals of accounts, for receivers in the other apps, and the receivers of accounts itself."""

from typing import Any

from allauth.account.models import EmailAddress
from allauth.account.signals import email_confirmed
from django.apps import AppConfig, apps
from django.db import transaction
from django.db.models.signals import post_migrate, post_save
from django.dispatch import Signal, receiver

from accounts import ledger, welcome
from accounts.models import User
from accounts.staff import roles

# An account is being closed. Sent inside the transaction, `user` (a User) as it was before: remove what names them and
# needs no lock on a job.
account_closing = Signal()

# The same, after the commit: for what takes locks or time. A crash may lose it, so what it does is repeated later.
account_closed = Signal()

# The owner of an address has taken the account of `user` (a User) back: undo what others have connected with it.
account_reclaimed = Signal()

# Answered with an `accounts.privacy.Part`: what an app holds about `user` (a User).
personal_data = Signal()


@receiver(post_save, sender=User, dispatch_uid="accounts.open_wallet")
def open_wallet(instance: User, created: bool, raw: bool = False, **_: Any) -> None:
    """Give every new user a wallet and the credits to start with."""
    if created and not raw:
        with transaction.atomic():
            ledger.open_account(user=instance)
            welcome.give_at_signup(instance)


@receiver(email_confirmed, dispatch_uid="accounts.welcome_address")
def welcome_address(email_address: EmailAddress, **_: Any) -> None:
    welcome.give_for_address(email_address.user, email_address.email)


@receiver(post_migrate, dispatch_uid="accounts.install_roles")
def install_roles(sender: AppConfig, **_: Any) -> None:
    """Install the roles once, when the last app has its permissions."""
    if sender is [app for app in apps.get_app_configs() if app.models_module][-1]:
        roles.install()
