"""Limits on how often: tries to sign in, sign-ups, forms, and calls of the API. PostgreSQL counts for all processes.

One row a limit and source, one statement a try, by the generic cell rate algorithm: `free_at` is when the source has
its whole allowance again, and each try moves it on by its share of the period. A row whose time is over says nothing.
"""

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

from allauth.account.internal.stagekit import unstash_login  # has no public name
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.models import RateLimit
from accounts.staff.actor import address_of

# Nothing moves once the allowance is used up, so that tries during the wait do not make it longer.
TAKE = """
INSERT INTO accounts_ratelimit AS old (key, free_at) VALUES (%(key)s, now() + %(step)s)
ON CONFLICT (key) DO UPDATE SET free_at = greatest(old.free_at, now()) + %(step)s
WHERE greatest(old.free_at, now()) + %(step)s <= now() + %(period)s
RETURNING 0::float
"""
WAIT = """
SELECT extract(epoch FROM free_at + %(step)s - %(period)s - now())::float FROM accounts_ratelimit WHERE key = %(key)s
"""
# Calls that went over the limit in the meantime cost a wait of one more period at most.
MERGE = """
INSERT INTO accounts_ratelimit AS old (key, free_at)
SELECT key, now() + calls * %(step)s FROM unnest(%(keys)s::text[], %(calls)s::int[]) AS merged (key, calls)
ON CONFLICT (key) DO UPDATE
SET free_at = least(greatest(old.free_at, now()) + (excluded.free_at - now()), now() + 2 * %(period)s)
RETURNING key, extract(epoch FROM free_at + %(step)s - %(period)s - now())::float
"""
# What is limited for each network, by the name of its view; `user` after it: for each user instead.
VIEWS = {
    "account_login": "sign_in",
    "account_signup": "sign_up",
    "mfa_login_webauthn": "sign_in",
    "telegram_login": "sign_in",
    "account_reset_password": "form",
    "account_reset_password_from_key": "form",
    "account_confirm_email": "form",
    "report_video": "report",
    "account_email": "form:user",
    "account_change_password": "guess_own:user",
    "account_set_password": "form:user",
    "account_reauthenticate": "guess_own:user",
    "mfa_authenticate": "guess_own:user",
    "mfa_reauthenticate": "guess_own:user",
    "close_account": "guess_own:user",
    "export": "form:user",
    "api_keys": "form:user",
    "telegram_connect": "form:user",
}


class TooOften(Exception):
    """The limit is reached; `seconds` until the next try is taken."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(f"Please wait {self.seconds} s.")


class TooBusy(TooOften):
    """The service is too busy for this just now."""


def network_of(address: str) -> str:
    """Name the network that counts as one source: the address itself, or the /64 of one of IPv6."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    return str(mapped or ip) if mapped or ip.version == 4 else str(ip_network((ip, 64), strict=False))


def take(limit: str, source: str) -> None:
    """Count one try. limit: a name in RATE_LIMITS. Raises TooOften, which costs nothing."""
    if steps := _steps(limit):
        values: dict[str, Any] = {"key": _key(limit, source), **steps}
        with connection.cursor() as cursor:
            cursor.execute(TAKE, values)
            if cursor.fetchone() is None:
                cursor.execute(WAIT, values)
                row = cursor.fetchone()
                raise TooOften(row[0] if row else 1)


def give_back(limit: str, source: str) -> None:
    """Take a try back that turned out to be none, such as a right password."""
    if steps := _steps(limit):
        RateLimit.objects.filter(pk=_key(limit, source)).update(free_at=F("free_at") - steps["step"])


def forget(limit: str, source: str) -> None:
    """Give the whole allowance back."""
    RateLimit.objects.filter(pk=_key(limit, source)).delete()


def prune() -> int:
    """Delete rows that say nothing any more. Returns their number."""
    return RateLimit.objects.filter(free_at__lt=Now()).delete()[0]


def _steps(limit: str) -> dict[str, timedelta] | None:
    """Return the period, and the share of it that one try takes; None where there is no limit."""
    times, seconds = settings.RATE_LIMITS[limit]
    period = timedelta(seconds=seconds)
    return {"step": period / times, "period": period} if times else None


def _key(limit: str, source: str) -> str:
    # Hashed: sources are as long as a client likes, and hold what people typed.
    return f"{limit}:{hashlib.sha256(source.encode(errors='replace')).hexdigest()[:32]}"


class Merged:
    """A limit that is counted in this process, and merged with the other processes' about once a second.

    For calls that are so frequent that a write for each would cost more than they do. A source may go over its limit
    for that second.
    """

    def __init__(self, limit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock, self._lock = limit, clock, threading.Lock()
        self._calls: Counter[str] = Counter()
        self._blocked: dict[str, float] = {}
        self._merged_at = -math.inf

    def take(self, source: str) -> None:
        """Count one call. Raises TooOften."""
        steps = _steps(self._limit)
        if steps is None:
            return
        now, key, calls = self._clock(), _key(self._limit, source), Counter[str]()
        with self._lock:
            if (wait := self._blocked.get(key, now) - now) > 0:
                raise TooOften(wait)
            self._calls[key] += 1
            if now - self._merged_at >= 1:
                self._merged_at, calls, self._calls = now, self._calls, Counter()
        if not calls:
            return
        keys = sorted(calls)  # two processes that merge lock the rows in one order
        values: dict[str, Any] = {"keys": keys, "calls": [calls[key] for key in keys], **steps}
        with connection.cursor() as cursor:
            cursor.execute(MERGE, values)
            waits = dict(cursor.fetchall())
        with self._lock:
            self._blocked = {key: until for key, until in self._blocked.items() if until > now}
            self._blocked |= {key: now + wait for key, wait in waits.items() if wait > 0}


class LimitForms:
    """Middleware: posts to the views of VIEWS are limited. Answers 429 with Retry-After."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: object) -> HttpResponse | None:
        match = request.resolver_match
        limit, _colon, by = VIEWS.get(match.view_name if match else "", "").partition(":")
        if not limit or request.method != "POST":
            return None
        source = network_of(address_of(request))
        if by:
            # Signed in, or after the password and before the second step.
            login = None if request.user.is_authenticated else unstash_login(request, peek=True)
            source = f"user {login.user.pk if login and login.user else request.user.pk or source}"
        try:
            take(limit, source)
        except TooOften as error:
            return too_often(request, error)
        return None

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Answer for views that take from a limit themselves, and for passwords."""
        return too_often(request, error) if isinstance(error, TooOften) else None


def too_often(request: HttpRequest, error: TooOften) -> HttpResponse:
    """Answer with the page that says so, and when to come again."""
    status = 503 if isinstance(error, TooBusy) else 429
    page = render(request, f"{status}.html", status=status)
    page["Retry-After"] = str(error.seconds)
    return page
