"""Links between the chat and the web, and the bot they lead to. Needs no python-telegram-bot."""

import re
import uuid

from django.conf import settings
from django.core import signing
from django.urls import reverse

from generation.models import GenerationJob
from telegram_bot.models import CreditPack, KnownBot

TOKEN = re.compile(r"(\d{1,20}):[\w-]{1,200}", re.ASCII)
# A video that Telegram does not take is fetched within so many seconds of being sent, or by signing in.
VIDEO_LIFE = 7 * 24 * 3600
_video = signing.TimestampSigner(salt="telegram_bot.video")


def bot_id_of(token: str) -> int:
    """Read the bot's id, which its token begins with. Raises ValueError when the token has another form."""
    match = TOKEN.fullmatch(token)
    if match is None:
        raise ValueError(
            "The token cannot be one from @BotFather: it has to be digits, a colon and letters. "
            "Check TELEGRAM_BOT_TOKEN."
        )
    return int(match[1])


def video_page(job: GenerationJob) -> str:
    """Make the URL of a video's page, which needs no sign-in: people in the chat may have no password."""
    return page("telegram_video", _video.sign(job.pk.hex))


def video_behind(signed: str) -> uuid.UUID:
    """Read the job's id from such a link.

    Raises:
        signing.SignatureExpired: it is too old. signing.BadSignature: it is none of ours.
    """
    return uuid.UUID(_video.unsign(signed, max_age=VIDEO_LIFE))


def page(name: str, *args: str) -> str:
    """Return the absolute URL of a page, for messages in the chat."""
    return settings.SITE_URL + reverse(name, args=args)


def remember_bot(*, bot_id: int, username: str) -> None:
    """Store the bot's username, for links to it."""
    KnownBot.objects.update_or_create(bot_id=bot_id, defaults={"username": username})


def to_bot(start: str) -> str | None:
    """Make a link that opens the chat and sends `/start <start>`; None before the bot first ran."""
    if not settings.TELEGRAM_BOT_TOKEN:
        return None
    known = KnownBot.objects.filter(bot_id=bot_id_of(settings.TELEGRAM_BOT_TOKEN)).first()
    return f"https://t.me/{known.username}?start={start}" if known else None


def to_shop() -> str | None:
    """Make a link to the offers in the chat; None when nothing is for sale."""
    if not settings.TELEGRAM_BOT_TOKEN or not CreditPack.objects.filter(for_sale=True).exists():
        return None
    return to_bot("buy_here")
