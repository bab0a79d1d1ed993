"""Links between the chat and the web."""

import uuid

from django.conf import settings
from django.core import signing
from django.urls import reverse

from generation.models import GenerationJob
from telegram_bot.models import CreditPack, KnownBot
from telegram_bot.sending.client import bot_id_of

# A video that Telegram does not take is fetched within so many seconds of being sent, or by signing in.
VIDEO_LIFE = 7 * 24 * 3600
_video = signing.TimestampSigner(salt="telegram_bot.video")


def video_page(job: GenerationJob) -> str:
    """The page of a video, as an absolute URL that needs no sign-in: who has no password must get at it, too."""
    return settings.SITE_URL + reverse("telegram_video", args=[_video.sign(job.pk.hex)])


def video_behind(signed: str) -> uuid.UUID:
    """The job of such a link.

    Raises:
        signing.SignatureExpired: it is too old. signing.BadSignature: it is none of ours.
    """
    return uuid.UUID(_video.unsign(signed, max_age=VIDEO_LIFE))


def link_page(token: str) -> str:
    """Where somebody signed in on the web answers a wish from the chat."""
    return settings.SITE_URL + reverse("telegram_link", args=[token])


def connect_page() -> str:
    """Where somebody on the web sees how their connection with Telegram stands."""
    return settings.SITE_URL + reverse("telegram_connect")


def login_page(token: str) -> str:
    return settings.SITE_URL + reverse("telegram_login", args=[token])


def site_name() -> str:
    """The site as people know it: its address without the scheme."""
    return settings.SITE_URL.partition("://")[2]


def remember_bot(*, bot_id: int, username: str) -> None:
    """What the bot is called, for links to it."""
    KnownBot.objects.update_or_create(bot_id=bot_id, defaults={"username": username})


def to_bot(start: str) -> str | None:
    """A link that opens the chat with the bot and has it hear `/start <start>`; None before the bot first ran."""
    if not settings.TELEGRAM_BOT_TOKEN:
        return None
    known = KnownBot.objects.filter(bot_id=bot_id_of(settings.TELEGRAM_BOT_TOKEN)).first()
    return f"https://t.me/{known.username}?start={start}" if known else None


def to_shop() -> str | None:
    """A link that has the bot say what is for sale; None where that is nothing."""
    if not settings.TELEGRAM_BOT_TOKEN or not CreditPack.objects.filter(for_sale=True).exists():
        return None
    return to_bot("buy_here")
