"""What is forgotten: updates and notices of last week, links of last month."""

from generation.database import in_database
from telegram_bot import inbox, linking, notices, signing_in


async def prune() -> int:
    """How many rows there were."""
    return await inbox.prune() + await _the_rest()


@in_database
def _the_rest() -> int:
    return notices.prune() + linking.prune() + signing_in.prune()
