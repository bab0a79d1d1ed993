"""PostgreSQL from asyncio and from outside Django's connections, and waiting for it while it is away."""

import asyncio
import functools
import hashlib
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, ParamSpec, TypeVar

import psycopg
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004  (Django's name)
from django.db import InterfaceError, OperationalError, close_old_connections, connection
from psycopg.conninfo import conninfo_to_dict

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

# The database is away or was restarted under us, or all connections of the pool are in use: the same call works later.
DATABASE_AWAY = (OperationalError, InterfaceError)
# The header that tells clients when that may be, in seconds.
RETRY_AFTER = {"Retry-After": "5"}
RECONNECT_SECONDS = 1.0
# A NOTIFY takes milliseconds; one that takes so long does not arrive.
HEARING_SECONDS = 3.0
HEARING_CHANNEL = "hearing"
# Try to lock until the end of the transaction. A lock of the session would hold nothing behind a pooler, where each
# statement may run in another session. No timeout may end the transaction, and so the lock.
TRY_LOCK = """
SELECT pg_try_advisory_xact_lock(%s), ARRAY(
    SELECT set_config(name, '0', true) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
)
"""
LOCK_RETRY_SECONDS = 0.5
# FOR UPDATE needs the right to change one column at least; a trigger keeps the id of a wallet as it is.
GRANTS = """
GRANT USAGE ON SCHEMA public TO serving;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO serving;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO serving;
REVOKE INSERT, UPDATE, DELETE ON django_migrations FROM serving;
REVOKE UPDATE, DELETE ON accounts_creditaccount, accounts_credittransaction, accounts_auditevent FROM serving;
GRANT UPDATE (id) ON accounts_creditaccount TO serving;
REVOKE DELETE ON accounts_walletmerge FROM serving;
REVOKE UPDATE ON accounts_securityevent FROM serving;
"""
# Where the process has a pool of connections, its requests keep at least half of them.
THREADS = max(1, min(8, settings.DATABASE_POOL_SIZE // 2)) if settings.DATABASE_POOL_SIZE else 8


class _InThreads(SyncToAsync[P, R]):
    """asgiref's bridge with several threads where it has one, so that a slow query delays nothing else.

    Under `async_to_sync` the call still runs in the caller's own thread, on its connection.
    """

    single_thread_executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="database")


def in_database(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make ORM code awaitable. Connections that died are dropped around each call.

    Without that, asynchronous code never recovers from a restart of the database: nothing else here would do it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return _InThreads(call)


def _parameters() -> dict[str, Any]:
    parameters: dict[str, Any] = connection.get_connection_params()
    for ours in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(ours, None)
    return parameters


@register(Tags.security, deploy=True)
def check_roles(**_: Any) -> list[CheckMessage]:
    """Warn where the site's own role could take the ledger's guards away."""
    if settings.DATABASE_OWNER:
        return []
    text = "DATABASE_OWNER_URL is not set: the role that serves the site owns the ledger's guards."
    return [Warning(text, hint="See docs/security.md.", id="generation.W001")]


@contextmanager
def as_owner() -> Iterator[None]:
    """Connect as the role that owns the tables while the block runs, where there is one beside the serving role."""
    ours = dict(connection.settings_dict)
    connection.close()
    how = {name: value for name, value in settings.DATABASE_OWNER.items() if name != "NAME"}
    connection.settings_dict.update(how, AS_OWNER=True)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(ours, AS_OWNER=False)


def grant_serving_role() -> None:
    """Let the serving role read and change rows, but for the columns and tables that only guards and owner write."""
    if connection.settings_dict["USER"] != settings.SERVING_ROLE:
        with connection.cursor() as cursor:
            cursor.execute(GRANTS.replace("serving", connection.ops.quote_name(settings.SERVING_ROLE)))


def listen_parameters() -> dict[str, Any]:
    """Connection parameters for psycopg itself, for a session that is kept: to the server, past any pooler."""
    is_direct = connection.settings_dict.get("AS_OWNER") and settings.DATABASE_OWNER
    direct: dict[str, Any] = dict(conninfo_to_dict("" if is_direct else settings.DATABASE_LISTEN_URL))
    kept = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    return (direct or _parameters()) | kept


def hears_notifications() -> bool:
    """Send a NOTIFY the usual way, and tell whether it arrives where this process listens. The log says if not.

    Raises:
        psycopg.OperationalError: there is no connection.
    """
    this, patience = uuid.uuid4().hex, {"connect_timeout": 10}
    with (
        psycopg.connect(**listen_parameters() | patience, autocommit=True) as listener,
        psycopg.connect(**_parameters() | patience, autocommit=True) as sender,
    ):
        listener.execute(f"LISTEN {HEARING_CHANNEL}")
        sender.execute("SELECT pg_notify(%s, %s)", [HEARING_CHANNEL, this])
        if any(heard.payload == this for heard in listener.notifies(timeout=HEARING_SECONDS)):
            return True
    logger.error(
        "NOTIFY does not arrive at %s: progress is shown late, and work begins late. Behind a pooler in transaction "
        "mode, such as PgBouncer, set DATABASE_LISTEN_URL to the address of PostgreSQL itself, with the same database.",
        "DATABASE_LISTEN_URL" if settings.DATABASE_LISTEN_URL else "DATABASE_URL",
    )
    return False


def check_hearing() -> None:
    """Let the log say at a start that notifications do not arrive. A database that is away is for others to report."""
    with suppress(psycopg.OperationalError):
        hears_notifications()


def lock_key(name: str) -> int:
    """Make 64 bits from a name, for an advisory lock that hardly anything else takes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


@contextmanager
def alone(task: str) -> Iterator[None]:
    """Run the block when no other process, on any host, runs one of the same name; wait until then."""
    with psycopg.connect(**listen_parameters()) as lock:
        # Tried again and again: a statement that waits in the server would hold back vacuum, and what waits for it.
        for tries in count():
            if (lock.execute(TRY_LOCK, [lock_key(task)]).fetchone() or [False])[0]:
                break
            if not tries:
                logger.warning("%s: another process is at it; waiting for its end", task)
            lock.rollback()
            time.sleep(LOCK_RETRY_SECONDS)
        yield


def notify(channel: str, *payloads: str) -> None:
    """Call every listener of the channel, once for each payload, when the current transaction commits."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) payload", [channel, list(payloads)]
        )


async def notifications(channel: str) -> AsyncIterator[str | None]:
    """Payloads of the channel, for ever, on one LISTEN connection that is made anew when it is lost.

    A None comes first and after each loss: what was sent meanwhile was not heard, so the reader looks for itself.
    """
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                **listen_parameters(), autocommit=True
            ) as listener:
                await listener.execute(f"LISTEN {channel}")
                yield None
                async for notification in listener.notifies():
                    yield notification.payload
        except psycopg.OperationalError as error:
            logger.warning("the listener on %s lost PostgreSQL, trying again: %s", channel, error)
        await asyncio.sleep(RECONNECT_SECONDS)


# --- Trying again -----------------------------------------------------------------------------------------------------


def delay(failures: int, *, longest: float = 60.0) -> float:
    """Return the seconds to wait after so many failures: 1, 2, 4 … `longest`, a fifth of it by chance."""
    return min(longest, 2.0 ** min(failures - 1, 16)) * random.uniform(0.9, 1.1)


def delays(*, longest: float = 60.0) -> Iterator[float]:
    """Yield the delays one after the other, without end."""
    for failures in count(1):
        yield delay(failures, longest=longest)


async def written(operation: Callable[[], Awaitable[R]], *, about: str) -> R:
    """Repeat `operation` until the database takes it: what is done and not written down would be done twice.

    `about` names the row in the log.
    """
    for pause in delays(longest=5.0):
        try:
            return await operation()
        except DATABASE_AWAY as error:
            logger.warning("%s is done but cannot be marked yet: %s", about, error)
            await asyncio.sleep(pause)
    raise AssertionError("delays have no end")
