"""The commands and buttons, a module for each subject. Importing this package registers them all (see `routes`)."""

from telegram_bot.commands import accounts, history, payments, preferences, video, welcome

__all__ = ["accounts", "history", "payments", "preferences", "video", "welcome"]
