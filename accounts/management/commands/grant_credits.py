"""Give a user credits, with a reason."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from accounts import ledger
from accounts.ledger import LedgerError
from accounts.models import User
from accounts.staff import audit_log


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Give a user credits."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("amount", type=int, help="whole credits, more than 0")
        parser.add_argument(
            "--reason", required=True, metavar="TEXT", help="shown to the user in their history"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["username"]
        user = User.objects.filter(username=name).first() if name.isprintable() else None
        if user is None:
            raise CommandError(f"There is no user {name!a}.")
        reason = options["reason"].strip()
        if not reason or not reason.isprintable():
            raise CommandError("Please give a reason, in one line of printable characters.")
        try:
            with transaction.atomic():
                entry = ledger.grant(user=user, amount=options["amount"], reason=reason)
                audit_log.note_command(user, entry.amount, reason)
        except LedgerError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{user.username}: {entry.amount:+d} credits, balance {entry.balance_after}")
