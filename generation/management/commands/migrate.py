"""Django's `migrate`, on one host at a time."""

from typing import Any

from django.core.management.commands import migrate

from generation.database import alone, as_owner, grant_serving_role


class Command(migrate.Command):
    """Waits while another process migrates the same database: two at once would make the same tables.

    As the role that owns the tables; what the serving role may is granted anew after it.
    """

    def handle(self, *args: Any, **options: Any) -> None:
        with as_owner(), alone("migrate"):
            super().handle(*args, **options)
            grant_serving_role()
