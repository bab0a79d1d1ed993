"""Between two transactional tests the database becomes what the migrations left, as by Django's flush but cheaper.

A flush truncates every table, which gives each of them and each of their indexes a new file on the disk, and then makes
permissions, roles, presets and packs anew. Here the rows of those tables go that are not as they were.
"""

import time
from collections.abc import Iterable
from typing import Any

from django.core.management.sql import emit_post_migrate_signal
from django.db import OperationalError, connection, transaction
from psycopg.errors import LockNotAvailable

GUARDED_TABLES = (
    "accounts_creditaccount",
    "accounts_credittransaction",
    "accounts_walletmerge",
    "accounts_auditevent",
)
PATIENCE_SECONDS = 60.0
Contents = dict[str, str | None]


class Emptying:
    """Made when the tables are as the migrations left them; called, it brings them back to that."""

    def __init__(self) -> None:
        self._first = contents()

    def __call__(self) -> None:
        """Wait until all writers are done, as a flush does, and remove what they added."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not (done := self._try()) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert done, f"the test database was still written to after {PATIENCE_SECONDS:.0f} seconds"

    def _try(self) -> bool:
        """Take every lock at once or none: waiting for one while holding others deadlocks with the bot."""
        shipped = {table for table, rows in self._first.items() if rows}
        with transaction.atomic():
            if not _lock(self._first):
                return False
            now = contents()
            changed = {table for table, rows in now.items() if rows != self._first[table]}
            spoilt = bool(changed & shipped)
            _delete(table for table in changed | (shipped if spoilt else set()) if now[table])
        if spoilt:
            emit_post_migrate_signal(verbosity=0, interactive=False, db=connection.alias)
            self._first = contents()
        return True


def contents() -> Contents:
    """By table, a digest of its rows; None where there are none."""
    tables = sorted(connection.introspection.django_table_names(only_existing=True, include_views=False))
    looks = (
        f"SELECT '{name}', md5(string_agg(r::text, ' ' ORDER BY r::text)) FROM {name} r" for name in tables
    )
    return dict(_run(" UNION ALL ".join(looks)))


def _lock(tables: Iterable[str]) -> bool:
    try:
        with transaction.atomic():
            _run(f"LOCK TABLE {', '.join(tables)} NOWAIT")
    except OperationalError as error:
        if isinstance(error.__cause__, LockNotAvailable):
            return False
        raise
    return True


def _delete(tables: Iterable[str]) -> None:
    """Past the ledger's guards, which rightly refuse it. That no row refers to one that is gone is seen in the end."""
    tables = list(tables)
    guarded = [table for table in tables if table in GUARDED_TABLES]
    _run(
        *(f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in guarded),
        *(f"DELETE FROM {table}" for table in tables),
        "SET CONSTRAINTS ALL IMMEDIATE",
        *(f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in guarded),
    )


def _run(*statements: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute("; ".join(statements))
        return cursor.fetchall() if cursor.description else []
