"""Privacy of an account: closing it for good, and the export of all that is known about a person.

The export is a ZIP and not a page of links: links die with the session, and people who leave want to have the videos,
not to fetch them one by one. It is streamed as it is read, so its size costs no memory.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import make_password
from django.core.files.storage import default_storage
from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from zipstream import ZIP_STORED, ZipStream

from accounts import notices, security_log
from accounts.models import (
    ApiKey,
    Ban,
    CreditAccount,
    CreditTransaction,
    Notice,
    SecurityEvent,
    User,
    UserLimits,
    WalletMerge,
)
from accounts.recovery import end_sessions
from accounts.signals import account_closed, account_closing, personal_data

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
T = TypeVar("T")


class LastSuperuser(Exception):
    """The account is the only active superuser's: without it the site could not be run."""


# --- Closing ----------------------------------------------------------------------------------------------------------


def close(*, user: User, request: HttpRequest | None = None) -> None:
    """End every way to sign in as `user`; live jobs are canceled, videos removed.

    Ledger entries and rows of jobs stay, belonging to `deleted_<random>`. Closing twice is harmless.

    Raises:
        LastSuperuser: this account must stay.
    """
    _anonymise(user, request)
    # Jobs are locked before users everywhere else, so they come after this transaction. A receiver that breaks is
    # logged and stops nothing; the reconciler repeats what was left.
    for receiver, answer in account_closed.send_robust(sender=User, user=user):
        if isinstance(answer, Exception):
            logger.error("%s broke after account %s was closed", receiver, user.pk, exc_info=answer)


@transaction.atomic
def _anonymise(user: User, request: HttpRequest | None) -> None:
    superusers = User.objects.select_for_update(no_key=True).filter(is_superuser=True, is_active=True)
    if {row.pk for row in superusers.order_by("pk")} == {user.pk}:
        raise LastSuperuser
    account_closing.send(sender=User, user=user)
    # Sessions that are not listed, if there are any, end with the password they were made under.
    end_sessions(user)
    for model in (ApiKey, EmailAddress, Authenticator, Notice, SecurityEvent):
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
        mail_when_ready=False,
        last_login=None,
        is_active=False,
        is_staff=False,
        is_superuser=False,
        anonymised_at=timezone.now(),
    )
    security_log.note("account closed", user, request)


# --- The export -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The data that one app holds about a user.

    name: its key in data.json. data: anything that JSON can hold. files: path in the ZIP → name in the storage.
    """

    name: str
    data: Any
    files: dict[str, str] = field(default_factory=dict)


def archive(*, user: User) -> Iterator[bytes]:
    """Stream the ZIP. The database is read before the first chunk, the storage while it is sent."""
    answers = personal_data.send(sender=User, user=user)
    parts = [Part(name="account", data=_account(user)), *(cast("Part", answer) for _, answer in answers)]
    document = {part.name: part.data for part in parts}
    # Videos are compressed already.
    stream = ZipStream(compress_type=ZIP_STORED)
    stream.add(json.dumps(document, cls=DjangoJSONEncoder, ensure_ascii=False, indent=2), "data.json")
    for part in parts:
        for path, name in part.files.items():
            stream.add(_contents(name), path)
    return iter(stream)


async def read_in_threads(chunks: Iterator[T]) -> AsyncIterator[T]:
    """Make an iterator that reads files fit for an ASGI server: each chunk is read in a thread."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _contents(name: str) -> Iterator[bytes]:
    """Read a file of the storage; empty when it was deleted since the list was made."""
    try:
        file = default_storage.open(name, "rb")
    except FileNotFoundError:
        logger.info("%s was deleted while an export was being read", name)
        return
    with file:
        yield from file.chunks(CHUNK_BYTES)


def _account(user: User) -> dict[str, Any]:
    def rows(model: Any, *fields: str) -> list[dict[str, Any]]:
        return list(model.objects.filter(user=user).values(*fields))

    # Wallets that became part of this one, such as the one in Telegram, with what happened in them before.
    merges = WalletMerge.objects.filter(target__user=user, undone_at=None).select_related("source")
    limits = rows(UserLimits, "daily_clips", "concurrent_jobs", "cooldown_seconds", "price_factor")
    return {
        "username": user.username,
        "first_name": user.first_name,
        "last_name": user.last_name,
        "language": user.language,
        "mail_when_ready": user.mail_when_ready,
        "joined": user.date_joined,
        "last_sign_in": user.last_login,
        "emails": rows(EmailAddress, "email", "verified", "primary"),
        "sessions": rows(UserSession, "ip", "user_agent", "created_at"),
        "second_steps": rows(Authenticator, "type", "created_at", "last_used_at"),
        "api_keys": rows(ApiKey, "name", "prefix", "created_at", "last_used_at", "revoked_at"),
        "limits": limits[0] if limits else None,
        "ban": Ban.objects.filter(user=user).values("reason", "since").first(),
        "credits": _wallet(user.credit_account),
        "joined_wallets": [
            {"joined_at": merge.made_at} | _wallet(merge.source) for merge in merges.order_by("id")
        ],
        "notices": [
            {"told": notices.text_of(notice), "at": notice.created_at, "closed_at": notice.seen_at}
            for notice in Notice.objects.filter(user=user).order_by("id")
        ],
    }


def _wallet(account: CreditAccount) -> dict[str, Any]:
    entries = CreditTransaction.objects.filter(account=account).order_by("id")
    return {
        "balance": account.balance,
        "held": account.held,
        "history": [
            {
                "time": entry.created_at,
                "kind": entry.kind,
                "change": entry.amount,
                "balance": entry.balance_after,
                "reason": entry.reason,
                "video": entry.reference,
            }
            for entry in entries.iterator()
        ],
    }
