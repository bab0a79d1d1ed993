"""Everything that is known about a person, as one ZIP: `data.json`, and the files themselves.

A ZIP and not a page of links: links die with the session, and whoever leaves wants to have the videos, not to fetch
them one by one. It is streamed as it is read, so its size costs no memory.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.core.files.storage import default_storage
from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.utils import timezone
from zipstream import ZIP_STORED, ZipStream

from accounts import notices
from accounts.models import (
    ApiKey,
    Ban,
    CreditAccount,
    CreditTransaction,
    Notice,
    User,
    UserLimits,
    WalletMerge,
)
from accounts.signals import account_closed, account_closing, personal_data

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


# Closing an account: what names the person goes, the books stay under an anonymous id.


CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Part:
    """What one app holds about somebody.

    name: its key in data.json. data: anything that JSON can hold. files: path in the ZIP → name in the storage.
    """

    name: str
    data: Any
    files: dict[str, str] = field(default_factory=dict)


def archive(*, user: User) -> Iterator[bytes]:
    """The ZIP, chunk by chunk. The database is read before the first chunk, the storage while it is sent."""
    answers = personal_data.send(sender=User, user=user)
    parts = [_own_part(user), *(cast("Part", answer) for _, answer in answers)]
    document = {part.name: part.data for part in parts}
    # Videos are compressed already.
    stream = ZipStream(compress_type=ZIP_STORED)
    stream.add(json.dumps(document, cls=DjangoJSONEncoder, ensure_ascii=False, indent=2), "data.json")
    for part in parts:
        for path, name in part.files.items():
            stream.add(_contents(name), path)
    return iter(stream)


async def off_the_loop(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks for an ASGI server, each read in a thread."""
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


def _contents(name: str) -> Iterator[bytes]:
    """A file of the storage; empty when it was deleted since the list was made."""
    try:
        file = default_storage.open(name, "rb")
    except FileNotFoundError:
        logger.info("%s was deleted while an export was being read", name)
        return
    with file:
        yield from file.chunks(CHUNK_BYTES)


def _own_part(user: User) -> Part:
    facts = {"credits": _credits(user), "joined_wallets": _joined_wallets(user), "notices": _notices(user)}
    return Part(name="account", data=_profile(user) | _agreements(user) | facts)


def _profile(user: User) -> dict[str, Any]:
    return {
        "username": user.username,
        "first_name": user.first_name,
        "last_name": user.last_name,
        "language": user.language,
        "joined": user.date_joined,
        "last_sign_in": user.last_login,
        "emails": list(EmailAddress.objects.filter(user=user).values("email", "verified", "primary")),
        "sessions": list(UserSession.objects.filter(user=user).values("ip", "user_agent", "created_at")),
        "second_steps": list(
            Authenticator.objects.filter(user=user).values("type", "created_at", "last_used_at")
        ),
        "api_keys": list(
            ApiKey.objects.filter(user=user).values(
                "name", "prefix", "created_at", "last_used_at", "revoked_at"
            )
        ),
    }


def _agreements(user: User) -> dict[str, Any]:
    """What staff decided about this person alone; None where nothing was."""
    limits = UserLimits.objects.filter(user=user)
    return {
        "limits": limits.values("daily_clips", "concurrent_jobs", "cooldown_seconds", "price_factor").first(),
        "ban": Ban.objects.filter(user=user).values("reason", "since").first(),
    }


def _notices(user: User) -> list[dict[str, Any]]:
    """What they were told, and when they closed it."""
    return [
        {"told": notices.words(notice), "at": notice.created_at, "closed_at": notice.seen_at}
        for notice in Notice.objects.filter(user=user).order_by("id")
    ]


def _credits(user: User) -> dict[str, Any]:
    return _wallet(user.credit_account)


def _joined_wallets(user: User) -> list[dict[str, Any]]:
    """Those that became part of this one, such as the one they had in Telegram, with what happened in them before."""
    merges = WalletMerge.objects.filter(target__user=user, undone_at=None).select_related("source")
    return [{"joined_at": merge.made_at} | _wallet(merge.source) for merge in merges.order_by("id")]


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
