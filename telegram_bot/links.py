"""Links between the chat and the web, signed or by one-time tokens. Needs no python-telegram-bot.

A one-time token has 192 random bits, of which only a SHA-256 is kept.
"""

import hashlib
import re
import secrets
import uuid
from datetime import timedelta

from django.conf import settings
from django.core import signing
from django.db.models.functions import Now
from django.urls import reverse
from django.utils.translation import gettext as _

from accounts.models import Ban, User
from generation.models import GenerationJob
from telegram_bot.errors import Refusal
from telegram_bot.models import CreditPack, KnownBot, LoginLink, TelegramAccount

BOT_TOKEN = re.compile(r"(\d{1,20}):[\w-]{1,200}", re.ASCII)
# The form that Telegram lets stand behind `?start=`, and a button carry.
ONE_TIME_TOKEN = re.compile(r"[\w-]{32}", re.ASCII)
LOGIN_LIFE = timedelta(minutes=5)
KEEP = timedelta(days=30)
# A video that Telegram does not take is fetched within so many seconds of being sent, or by signing in.
VIDEO_LIFE = 7 * 24 * 3600
_videos = signing.TimestampSigner(salt="telegram_bot.video")


def bot_id_of(token: str) -> int:
    """Read the bot's id, which its token begins with. Raises ValueError when the token has another form."""
    match = BOT_TOKEN.fullmatch(token)
    if match is None:
        raise ValueError(
            "The token cannot be one from @BotFather: it has to be digits, a colon and letters. "
            "Check TELEGRAM_BOT_TOKEN."
        )
    return int(match[1])


def our_bot() -> int | None:
    """Return the id of this site's bot; None without a token, or with one that cannot work, of which the bot tells."""
    match = BOT_TOKEN.fullmatch(settings.TELEGRAM_BOT_TOKEN)
    return int(match[1]) if match else None


def video_page(job: GenerationJob) -> str:
    """Make the URL of a video's page, which needs no sign-in: people in the chat may have no password."""
    return page("telegram_video", _videos.sign(job.pk.hex))


def video_behind(signed: str) -> uuid.UUID:
    """Read the job's id from such a link.

    Raises:
        signing.SignatureExpired: it is too old. signing.BadSignature: it was not signed here.
    """
    return uuid.UUID(_videos.unsign(signed, max_age=VIDEO_LIFE))


def page(name: str, *args: str) -> str:
    """Return the absolute URL of a page, for messages in the chat."""
    return settings.SITE_URL + reverse(name, args=args)


def to_bot(start: str) -> str | None:
    """Make a link that opens the chat and sends `/start <start>`; None before the bot first ran."""
    bot_id = our_bot()
    known = KnownBot.objects.filter(bot_id=bot_id).first() if bot_id else None
    return f"https://t.me/{known.username}?start={start}" if known else None


def to_shop() -> str | None:
    """Make a link to the offers in the chat; None when nothing is for sale."""
    if our_bot() is None or not CreditPack.objects.filter(for_sale=True).exists():
        return None
    return to_bot("buy_here")


# --- One-time tokens ------------------------------------------------------------------------------------------------


def new_token() -> tuple[str, str]:
    """Draw a token; returns it and its digest."""
    token = secrets.token_urlsafe(24)
    return token, digest(token)


def digest(token: str) -> str:
    """Return the digest to look for in the table; of anything that is no token, one that is never there."""
    return hashlib.sha256(token.encode()).hexdigest() if ONE_TIME_TOKEN.fullmatch(token) else ""


def issue_login(*, account: TelegramAccount) -> str:
    """Make a token that signs this person in once; earlier ones end.

    Opening the link does nothing yet, so that a preview of it burns nothing: pressing the button there does.

    Raises:
        Refusal: the account is banned, or one of the staff.
    """
    user = account.user
    if not user.is_active:
        raise Refusal(Ban.words_for(user))
    if user.is_staff or user.is_superuser:
        raise Refusal(_("Accounts of the staff are signed in to on the web only, with their password."))
    LoginLink.objects.filter(account=account, used_at=None).delete()
    token, hashed = new_token()
    LoginLink.objects.create(account=account, user=user, digest=hashed, expires_at=Now() + LOGIN_LIFE)
    return token


def find_login(token: str) -> LoginLink | None:
    """Find the link behind a token that still works, without a change to it."""
    rows = LoginLink.objects.select_related("user", "account__user").filter(
        digest=digest(token),
        used_at=None,
        expires_at__gt=Now(),
        user__is_active=True,
        user__is_staff=False,
    )
    link = rows.first()
    # The account may belong to another user since.
    return link if link is not None and link.account.user_id == link.user_id else None


def redeem_login(token: str) -> User | None:
    """Use up a token; returns the user to sign in, None the second time and when it is too late."""
    link = find_login(token)
    if link is None or not LoginLink.objects.filter(pk=link.pk, used_at=None).update(used_at=Now()):
        return None
    return link.user


def prune_logins() -> int:
    """Delete sign-in links that ran out a month ago."""
    return LoginLink.objects.filter(expires_at__lt=Now() - KEEP).delete()[0]
