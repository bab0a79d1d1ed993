"""What the bot does, in figures: requests to Telegram by outcome, and how long updates waited to be answered.

Counted in memory and added to the database every few seconds, so that `/metrics` tells the same in every process.
"""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass

from django.db import transaction
from django.db.models import F

from generation.database import DATABASE_AWAY, in_database
from telegram_bot.models import BotTraffic

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
UPDATE = "update"
OUTCOMES = {200: "ok", 403: "blocked", 429: "wait"}


@dataclass
class Figures:
    """How often, and seconds in all."""

    number: int = 0
    seconds: float = 0.0


class Traffic:
    """Figures that are not in the database yet, by what was done and how it came out."""

    def __init__(self) -> None:
        self._figures: defaultdict[tuple[str, str], Figures] = defaultdict(Figures)

    def count(self, what: str, outcome: str, *, seconds: float) -> None:
        figures = self._figures[what, outcome]
        figures.number += 1
        figures.seconds += seconds

    async def flush_for_ever(self) -> None:
        """A crash loses the last few seconds of it."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Add what there is to the database; what cannot be added now is kept for the next time."""
        figures, self._figures = self._figures, defaultdict(Figures)
        try:
            await _add(dict(figures))
        except DATABASE_AWAY as error:
            logger.warning("figures are kept until the database is back: %s", error)
            for key, kept in figures.items():
                self._figures[key].number += kept.number
                self._figures[key].seconds += kept.seconds


def outcome_of(status: int) -> str:
    """In a word, from the status of an answer."""
    return OUTCOMES.get(status, "refused" if status < 500 else "error")


@in_database
@transaction.atomic
def _add(figures: dict[tuple[str, str], Figures]) -> None:
    for (what, outcome), added in figures.items():
        row, _ = BotTraffic.objects.get_or_create(what=what, outcome=outcome)
        BotTraffic.objects.filter(pk=row.pk).update(
            number=F("number") + added.number, seconds=F("seconds") + added.seconds
        )


traffic = Traffic()
