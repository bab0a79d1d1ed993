"""Closing an account: what names the person goes, the books stay under an anonymous id."""

import logging
import uuid

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone

from accounts.models import ApiKey, Notice, User
from accounts.signals import account_closed, account_closing

logger = logging.getLogger(__name__)


class LastSuperuser(Exception):
    """Without you nobody could run this site: make another superuser first."""


def close(*, user: User) -> None:
    """Nobody can sign in as `user` from here on, at any door; live jobs are canceled, videos removed.

    Ledger entries and rows of jobs stay, belonging to `deleted_<random>`. Closing twice is harmless.

    Raises:
        LastSuperuser: this one must stay.
    """
    _anonymise(user)
    # Jobs are locked before users everywhere else, so they come after this transaction. A receiver that breaks is
    # written down and keeps nobody; the reconciler does again what was left.
    for receiver, answer in account_closed.send_robust(sender=User, user=user):
        if isinstance(answer, Exception):
            logger.error("%s broke after account %s was closed", receiver, user.pk, exc_info=answer)


@transaction.atomic
def _anonymise(user: User) -> None:
    _refuse_the_last_superuser(user)
    account_closing.send(sender=User, user=user)
    _end_sessions(user)
    for model in (ApiKey, EmailAddress, Authenticator, Notice):
        model.objects.filter(user=user).delete()
    user.groups.clear()
    user.user_permissions.clear()
    # Not save(): its signal cancels jobs, inside this transaction.
    User.objects.filter(pk=user.pk).update(
        username=f"deleted_{uuid.uuid4().hex[:12]}",
        password=make_password(None),
        email="",
        first_name="",
        last_name="",
        language="",
        last_login=None,
        is_active=False,
        is_staff=False,
        is_superuser=False,
        anonymised_at=timezone.now(),
    )
    logger.info("account %s was closed by its owner", user.pk)


def _end_sessions(user: User) -> None:
    """Sessions that are not listed, if there are any, end with the password they were made under."""
    listed = UserSession.objects.filter(user=user)
    Session.objects.filter(session_key__in=listed.values("session_key")).delete()
    listed.delete()


def _refuse_the_last_superuser(user: User) -> None:
    superusers = User.objects.select_for_update(no_key=True).filter(is_superuser=True, is_active=True)
    if {row.pk for row in superusers} == {user.pk}:
        raise LastSuperuser
