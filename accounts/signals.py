"""Signals of accounts, for receivers in the other apps, and the receivers of accounts itself."""

from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_migrate, post_save
from django.dispatch import Signal, receiver
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.models import User
from accounts.staff import roles

# An account is being closed. Sent inside the transaction, `user` (a User) as it was before: remove what names them and
# needs no lock on a job.
account_closing = Signal()

# The same, after the commit: for what takes locks or time. A crash may lose it, so what it does is repeated later.
account_closed = Signal()

# Answered with an `accounts.privacy.Part`: what an app holds about `user` (a User).
personal_data = Signal()


@receiver(post_save, sender=User, dispatch_uid="accounts.open_wallet")
def open_wallet(instance: User, created: bool, raw: bool = False, **_: Any) -> None:
    """Give every new user a wallet and the sign-up grant."""
    if not created or raw:
        return
    with transaction.atomic():
        ledger.open_account(user=instance)
        if settings.SIGNUP_CREDITS:
            ledger.grant(
                user=instance,
                amount=settings.SIGNUP_CREDITS,
                reason=gettext_noop("Welcome credits"),
                external_id=ledger.welcome_id(instance),
            )


@receiver(post_migrate, dispatch_uid="accounts.install_roles")
def install_roles(sender: AppConfig, **_: Any) -> None:
    """Install the roles once, when the last app has its permissions."""
    if sender is [app for app in apps.get_app_configs() if app.models_module][-1]:
        roles.install()
