#!/usr/bin/env python3
"""Django's command line. Without `DATABASE_URL` it holds the embedded PostgreSQL while a command runs."""

import os
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "videoplatform.settings")


def database_for(arguments: list[str]) -> AbstractContextManager[Any]:
    """Return what must be held while the command line `arguments` runs."""
    from django.conf import settings

    from videoplatform import embedded_postgres

    if (
        not arguments
        or arguments[0] in {"help", "--help", "-h", "version", "--version"}
        or not settings.EMBEDDED_POSTGRES
    ):
        return nullcontext()
    return embedded_postgres.hold(settings.DATA_DIR)


def main() -> None:
    """Run one command. SIGTERM ends it as Ctrl-C does, so that the database is stopped after it."""
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from videoplatform.embedded_postgres import EmbeddedPostgresError
    from videoplatform.utf8 import use_utf8

    use_utf8(sys.argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with database_for(sys.argv[1:]):
            execute_from_command_line(sys.argv)
    except (EmbeddedPostgresError, ImproperlyConfigured) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    try:
        import django  # noqa: F401
    except ImportError:
        sys.exit("Django is not installed here. Run `make setup`, then use .venv/bin/python manage.py.")
    main()
