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


class BadToken(Exception):
    """The token cannot be one from @BotFather: it has to be digits, a colon and letters. Check TELEGRAM_BOT_TOKEN."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def bot_id_of(token: str) -> int:
    """The id of the bot, which its token begins with.

    Raises:
        BadToken: it has another form.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise BadToken
    return int(match[1])


def video_page(job: GenerationJob) -> str:
    """The page of a video, as an absolute URL that needs no sign-in: people in the chat may have no password."""
    return settings.SITE_URL + reverse("telegram_video", args=[_video.sign(job.pk.hex)])


def video_behind(signed: str) -> uuid.UUID:
    """The job of such a link.

    Raises:
        signing.SignatureExpired: it is too old. signing.BadSignature: it is none of ours.
    """
    return uuid.UUID(_video.unsign(signed, max_age=VIDEO_LIFE))


def link_page(token: str) -> str:
    """The page on which a request to join from the chat is answered."""
    return settings.SITE_URL + reverse("telegram_link", args=[token])


def connect_page() -> str:
    """The page that shows how the connection with Telegram stands."""
    return settings.SITE_URL + reverse("telegram_connect")


def login_page(token: str) -> str:
    return settings.SITE_URL + reverse("telegram_login", args=[token])


def remember_bot(*, bot_id: int, username: str) -> None:
    """Store the bot's username, for links to it."""
    KnownBot.objects.update_or_create(bot_id=bot_id, defaults={"username": username})


def to_bot(start: str) -> str | None:
    """A link that opens the chat with the bot and sends it `/start <start>`; None before the bot first ran."""
    if not settings.TELEGRAM_BOT_TOKEN:
        return None
    known = KnownBot.objects.filter(bot_id=bot_id_of(settings.TELEGRAM_BOT_TOKEN)).first()
    return f"https://t.me/{known.username}?start={start}" if known else None


def to_shop() -> str | None:
    """A link to the offers in the chat; None when nothing is for sale."""
    if not settings.TELEGRAM_BOT_TOKEN or not CreditPack.objects.filter(for_sale=True).exists():
        return None
    return to_bot("buy_here")
