"""Import the balances of a bot that already has users."""

import csv
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.models import CreditTransaction
from accounts.staff import audit_log
from telegram_bot.users import open_account

COLUMNS = ["telegram_id", "credits"]
# Telegram promises ids of at most 52 significant bits.
MAX_TELEGRAM_ID = 2**52 - 1
SHOWN_ERRORS = 20


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = (
        "Give people of an existing bot their credits: a CSV file with the columns telegram_id,credits. A person who "
        "is not known yet gets an account. Each telegram_id is credited once, however often the file is imported. "
        "A file with a mistake imports nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="CSV, UTF-8, first line: telegram_id,credits")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        """Check the whole file, then import it line by line."""
        balances = _read(file)
        granted = [amount for telegram_id, amount in balances.items() if _import(telegram_id, amount)]
        self.stdout.write(
            f"{sum(granted)} credits imported. People credited: {len(granted)}. "
            f"Lines with nothing new: {len(balances) - len(granted)}."
        )


def _import(telegram_id: int, amount: int) -> bool:
    """Give the credits; False for 0, and for a person who was credited before."""
    user = open_account(telegram_id=telegram_id).user
    if amount == 0:
        return False
    external_id, grants = f"import:{telegram_id}", CreditTransaction.Kind.GRANT
    with transaction.atomic():
        ledger.lock_account(user=user)
        if CreditTransaction.objects.filter(kind=grants, external_id=external_id).exists():
            return False
        reason = gettext_noop("Balance from before")
        ledger.grant(user=user, amount=amount, reason=reason, external_id=external_id)
        audit_log.note_command(user, amount, reason)
    return True


def _read(file: Path) -> dict[int, int]:
    """Read credits by telegram_id; or raise one CommandError that names the mistakes by line, as an editor counts."""
    errors: list[str] = []
    balances: dict[int, int] = {}
    lines: dict[int, int] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            if [name.strip().lower() for name in next(reader, [])] != COLUMNS:
                raise CommandError(f"{file}: the first line must be {','.join(COLUMNS)}")
            for row in filter(None, reader):
                try:
                    telegram_id, amount = _parse(row)
                    if telegram_id in lines:
                        raise ValueError(f"telegram_id {telegram_id} was on line {lines[telegram_id]}")
                except ValueError as error:
                    errors.append(f"line {reader.line_num}: {error}")
                else:
                    lines[telegram_id], balances[telegram_id] = reader.line_num, amount
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{file} cannot be read as CSV in UTF-8: {error}") from None
    if errors:
        more = f"\n… and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise CommandError("Nothing was imported.\n" + "\n".join(errors[:SHOWN_ERRORS]) + more)
    return balances


def _parse(row: list[str]) -> tuple[int, int]:
    """Read the id and the credits of a line. Raises ValueError with the mistake."""
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} values instead of {len(COLUMNS)}")
    telegram_id, amount = (value.strip() for value in row)
    if not _is_number(telegram_id) or not 0 < int(telegram_id) <= MAX_TELEGRAM_ID:
        raise ValueError(f"{telegram_id!r} is not the id of a Telegram user")
    if not _is_number(amount) or int(amount) > ledger.MAX_GRANT:
        raise ValueError(f"{amount!r} is not a whole number of credits from 0 to {ledger.MAX_GRANT}")
    return int(telegram_id), int(amount)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
