"""Check the books, keep the result for staff, and exit 1 when anything does not fit."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from accounts.ledger_check import audit_and_keep


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Prove the books: sums, running balances, resolutions, and that each job was charged as it ended."

    def handle(self, *args: Any, **options: Any) -> None:
        result = audit_and_keep()
        for sentence in result.discrepancies:
            self.stderr.write(self.style.ERROR(sentence))
        summary = (
            f"{result.accounts} accounts, {result.entries} entries, {len(result.discrepancies)} discrepancies"
        )
        if result.discrepancies:
            raise CommandError(summary)
        self.stdout.write(self.style.SUCCESS(summary))
