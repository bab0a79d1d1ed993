"""Test databases: a template is migrated once a run, and each process of the run works on a copy of it.

Each process holds a shared lock on the template; the last one removes it.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from psycopg import sql

from generation.database import listen_parameters
from tests.environment import RUN

TEMPLATE = "test_template_" + RUN.partition("/")[0]
IN_USE, MADE = 0x7E57_0001, 0x7E57_0002  # advisory locks: the template is in use; it is being made


@contextmanager
def copy_of_the_template() -> Iterator[None]:
    """Connect Django to a migrated database of this process's own while the block runs."""
    original = connection.settings_dict["NAME"]
    name = connection.settings_dict["TEST"]["NAME"] or f"test_{original}"
    name += RUN.partition("/")[2]  # a run that a test starts has a database of its own
    with _server() as server:
        server.execute("SELECT pg_advisory_lock_shared(%s)", [IN_USE])
        with _locked(server, MADE):
            _make_template(server)
            _drop(server, name)
            _run(server, "CREATE DATABASE {} TEMPLATE {}", name, TEMPLATE)
            # Nothing here needs to survive a crash of the machine.
            _run(server, "ALTER DATABASE {} SET synchronous_commit TO off", name)
        _lead_to(name)
        yield
        # Asynchronous code runs the ORM in a thread that outlives the tests, as does its connection.
        asyncio.run(sync_to_async(connections.close_all)())
        _lead_to(original)
        _drop(server, name)
        server.execute("SELECT pg_advisory_unlock_shared(%s)", [IN_USE])
        [(last,)] = server.execute("SELECT pg_try_advisory_lock(%s)", [IN_USE]).fetchall()
        if last:
            _drop(server, TEMPLATE)


def _server() -> "psycopg.Connection[Any]":
    """Open a connection beside Django's, to a database that always exists."""
    return psycopg.connect(**listen_parameters() | {"dbname": "postgres"}, autocommit=True)


@contextmanager
def _locked(server: "psycopg.Connection[Any]", lock: int) -> Iterator[None]:
    server.execute("SELECT pg_advisory_lock(%s)", [lock])
    yield
    server.execute("SELECT pg_advisory_unlock(%s)", [lock])


def _make_template(server: "psycopg.Connection[Any]") -> None:
    """Migrate the template unless this run has one. Remove those of killed runs."""
    names = "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_template\\_%%'"
    found = {name for (name,) in server.execute(names)}
    if TEMPLATE in found:
        return
    for name in found:
        _drop(server, name)
    _run(server, "CREATE DATABASE {}", TEMPLATE)
    original = connection.settings_dict["NAME"]
    _lead_to(TEMPLATE)
    try:
        call_command("migrate", interactive=False, verbosity=0, run_syncdb=True)
    except BaseException:
        _lead_to(original)
        _drop(server, TEMPLATE)
        raise
    _lead_to(original)


def _lead_to(name: str) -> None:
    connection.close()
    settings.DATABASES["default"]["NAME"] = connection.settings_dict["NAME"] = name


def _drop(server: "psycopg.Connection[Any]", name: str) -> None:
    """Drop the database. Raises ObjectInUse, with the sessions in its notes, while a test still uses it."""
    try:
        _run(server, "DROP DATABASE IF EXISTS {}", name)
    except psycopg.errors.ObjectInUse as error:
        open_ = "SELECT pid, application_name, state, query FROM pg_stat_activity WHERE datname = %s"
        error.add_note(f"{name}, seen from process {os.getpid()}: {server.execute(open_, [name]).fetchall()}")
        raise


def _run(server: "psycopg.Connection[Any]", statement: str, *names: str) -> None:
    server.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
