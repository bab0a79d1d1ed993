"""Bring the balances of a bot that already has users."""

import csv
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.translation import gettext_noop

from accounts import ledger
from accounts.models import CreditTransaction
from telegram_bot.users import open_account

COLUMNS = ["telegram_id", "credits"]
# Telegram promises ids of at most 52 significant bits.
MAX_TELEGRAM_ID = 2**52 - 1
SHOWN_ERRORS = 20


@dataclass(frozen=True)
class Line:
    """One line of the file, counted as an editor counts."""

    number: int
    telegram_id: int
    credits: int

    @property
    def external_id(self) -> str:
        return f"import:{self.telegram_id}"


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = (
        "Give people of an existing bot their credits: a CSV file with the columns telegram_id,credits. Whoever is not "
        "known yet gets an account. Each telegram_id is credited once, however often the file is imported. "
        "A file with a mistake imports nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="CSV, UTF-8, first line: telegram_id,credits")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        """Check the whole file, then import it line by line."""
        lines = _read(file)
        granted = [line for line in lines if _import(line)]
        self.stdout.write(
            f"{sum(line.credits for line in granted)} credits imported. People credited: {len(granted)}. "
            f"Lines with nothing new: {len(lines) - len(granted)}."
        )


def _import(line: Line) -> bool:
    """Whether credits were given: not when they were before, and not for 0."""
    user = open_account(telegram_id=line.telegram_id).user
    if line.credits == 0:
        return False
    with transaction.atomic():
        ledger.lock_account(user=user)
        kind = CreditTransaction.Kind.GRANT
        if CreditTransaction.objects.filter(kind=kind, external_id=line.external_id).exists():
            return False
        ledger.grant(
            user=user,
            amount=line.credits,
            reason=gettext_noop("Balance from before"),
            external_id=line.external_id,
        )
    return True


def _read(file: Path) -> list[Line]:
    """All lines, or one CommandError that names the mistakes by their line numbers."""
    errors: list[str] = []
    lines: list[Line] = []
    seen: dict[int, int] = {}
    try:
        for number, row in _rows(file):
            line = _parse(number, row)
            if isinstance(line, str):
                errors.append(f"line {number}: {line}")
            elif line.telegram_id in seen:
                errors.append(
                    f"line {number}: telegram_id {line.telegram_id} was on line {seen[line.telegram_id]}"
                )
            else:
                seen[line.telegram_id] = number
                lines.append(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{file} cannot be read as CSV in UTF-8: {error}") from None
    if errors:
        more = f"\n… and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise CommandError("Nothing was imported.\n" + "\n".join(errors[:SHOWN_ERRORS]) + more)
    return lines


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        heading = [name.strip().lower() for name in next(reader, [])]
        if heading != COLUMNS:
            raise CommandError(f"{file}: the first line must be {','.join(COLUMNS)}")
        for row in reader:
            if row:
                yield reader.line_num, row


def _parse(number: int, row: list[str]) -> Line | str:
    """The line, or what is wrong with it."""
    if len(row) != len(COLUMNS):
        return f"{len(row)} values instead of {len(COLUMNS)}"
    telegram_id, amount = (value.strip() for value in row)
    if not _is_number(telegram_id) or not 0 < int(telegram_id) <= MAX_TELEGRAM_ID:
        return f"{telegram_id!r} is not the id of a Telegram user"
    if not _is_number(amount) or int(amount) > ledger.MAX_GRANT:
        return f"{amount!r} is not a whole number of credits from 0 to {ledger.MAX_GRANT}"
    return Line(number=number, telegram_id=int(telegram_id), credits=int(amount))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
