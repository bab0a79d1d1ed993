"""The commands and buttons, a module a subject. Importing this package registers them all (see `routes`)."""

from telegram_bot.commands import (
    accounts,
    again,
    cancel,
    history,
    payments,
    preferences,
    sharing,
    video,
    wallet,
    welcome,
)

__all__ = [
    "accounts",
    "again",
    "cancel",
    "history",
    "payments",
    "preferences",
    "sharing",
    "video",
    "wallet",
    "welcome",
]
