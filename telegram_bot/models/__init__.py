"""The tables of the bot."""

from telegram_bot.models.accounts import BotTraffic, JobMessage, MessageRef, TelegramAccount, TelegramUpdate
from telegram_bot.models.links import ChatNotice, KnownBot, LinkRequest, LoginLink
from telegram_bot.models.payments import CreditPack, StarInvoice, StarPayment

__all__ = [
    "BotTraffic",
    "ChatNotice",
    "CreditPack",
    "JobMessage",
    "KnownBot",
    "LinkRequest",
    "LoginLink",
    "MessageRef",
    "StarInvoice",
    "StarPayment",
    "TelegramAccount",
    "TelegramUpdate",
]
