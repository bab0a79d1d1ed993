"""A wallet and the sign-up grant for every created user, by whichever door they were created."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from accounts import ledger
from accounts.models import User


@receiver(post_save, sender=User, dispatch_uid="accounts.open_wallet")
def open_wallet(instance: User, created: bool, raw: bool = False, **_: Any) -> None:
    if not created or raw:
        return
    with transaction.atomic():
        ledger.open_account(user=instance)
        if settings.SIGNUP_CREDITS:
            ledger.grant(
                user=instance,
                amount=settings.SIGNUP_CREDITS,
                reason="Welcome credits",
                external_id=ledger.welcome_id(instance),
            )
