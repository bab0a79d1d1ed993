"""The tables of the bot."""

from telegram_bot.models.accounts import BotTraffic, JobMessage, JobPost, TelegramAccount, TelegramUpdate
from telegram_bot.models.links import KnownBot, LinkRequest, LoginLink, Notice
from telegram_bot.models.payments import CreditPack, StarInvoice, StarPayment

__all__ = [
    "BotTraffic",
    "CreditPack",
    "JobMessage",
    "JobPost",
    "KnownBot",
    "LinkRequest",
    "LoginLink",
    "Notice",
    "StarInvoice",
    "StarPayment",
    "TelegramAccount",
    "TelegramUpdate",
]
