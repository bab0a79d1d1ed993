"""The calendar of all figures: days in UTC, and when one is over for good."""

from datetime import UTC, date, datetime, timedelta

# Transactions that began before midnight may still be open for so long after it.
SETTLED = timedelta(hours=1)


def today() -> date:
    return datetime.now(UTC).date()


def settled() -> date:
    """The first day of which something may still become known."""
    return (datetime.now(UTC) - SETTLED).date()


def between(first: date, end: date) -> list[date]:
    """From `first` up to `end` without it."""
    return [first + timedelta(days=number) for number in range((end - first).days)]


def begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
