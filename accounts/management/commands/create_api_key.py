"""A new API key; prints the key alone, so that a script can take it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import api_keys
from accounts.models import User


class Command(BaseCommand):
    help = "Create an API key for a user and print it. It is not shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--name", default="command line", help="to tell keys apart")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"], is_active=True).first()
        if user is None:
            raise CommandError(f"There is no active user {options['username']!r}.")
        self.stdout.write(api_keys.issue(user=user, name=options["name"])[1])
