"""Django's `migrate`, on one host at a time."""

from typing import Any

from django.core.management.commands import migrate

from generation.database import alone


class Command(migrate.Command):
    """Waits while another process migrates the same database: two at once would make the same tables."""

    def handle(self, *args: Any, **options: Any) -> None:
        with alone("migrate"):
            super().handle(*args, **options)
