"""Create an API key and print it alone, so that a script can take it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts import api_keys
from accounts.models import User


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Create an API key for a user and print it. It is not shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--name", default="command line", help="to tell keys apart")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["username"]
        user = User.objects.filter(username=name, is_active=True).first() if name.isprintable() else None
        if user is None:
            raise CommandError(f"There is no active user {name!a}.")
        if not options["name"].isprintable():
            raise CommandError("The key's name must be of printable characters.")
        self.stdout.write(api_keys.issue(user=user, name=options["name"])[1])
