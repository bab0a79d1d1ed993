"""Receivers of signals: what happens to jobs and accounts elsewhere reaches the chat. Loaded by every process, so
without python-telegram-bot.
"""

import html
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from django.conf import settings
from django.db.models.functions import Now
from django.db.models.signals import post_migrate, post_save
from django.dispatch import receiver
from django.utils import translation

from accounts import notices
from accounts.models import Ban, Notice, User
from accounts.privacy import Part
from accounts.signals import account_closed, account_closing, account_reclaimed, personal_data
from generation.jobs.events import jobs_finished, jobs_retried
from generation.models import GenerationJob
from telegram_bot import linking, users, wakeup
from telegram_bot.models import (
    ChatNotice,
    CreditPack,
    JobMessage,
    LinkRequest,
    LoginLink,
    MessageRef,
    StarPayment,
    TelegramAccount,
)
from telegram_bot.sending import outbox


@receiver(jobs_finished, dispatch_uid="telegram_bot.make_deliveries_due")
def make_deliveries_due(jobs: Sequence[GenerationJob], **_: Any) -> None:
    """Make the results due in the transaction that ends the jobs, in whichever process."""
    pending = JobMessage.objects.filter(job__in=jobs, state=JobMessage.State.PENDING)
    if outbox.update_each(pending, next_attempt_at=Now()):
        wakeup.call(wakeup.OUTBOX)


@receiver(jobs_retried, dispatch_uid="telegram_bot.deliver_retried")
def deliver_retried(pairs: Sequence[tuple[GenerationJob, GenerationJob]], **_: Any) -> None:
    """Deliver jobs that staff have made again to the chats that asked for the first ones."""
    again = {original.pk: job for original, job in pairs}
    place = ("bot_id", "chat_id", "thread_id", "reply_to")
    JobMessage.objects.bulk_create(
        JobMessage(job=again[asked["job"]], **{name: asked[name] for name in place})
        for asked in JobMessage.objects.filter(job__in=again).values("job", *place)
    )


@receiver(notices.made, dispatch_uid="telegram_bot.pass_notice_on")
def pass_notice_on(notice: Notice, **_: Any) -> None:
    """Send a notice of the site to the chat as well, in the transaction that makes it.

    A person who blocked the bot gets it after their next message.
    """
    _tell(notice.user, "ℹ️", lambda: notices.text_of(notice))


@receiver(post_save, sender=Ban, dispatch_uid="telegram_bot.tell_of_ban")
def tell_of_ban(instance: Ban, **_: Any) -> None:
    """Say why, in the transaction that bans."""
    _tell(instance.user, "🚫", lambda: Ban.words_for(instance.user))


def _tell(user: User, sign: str, words: Callable[[], str]) -> None:
    account = TelegramAccount.objects.select_related("user").filter(user=user).first()
    if account is not None and settings.TELEGRAM_BOT_TOKEN:
        with translation.override(users.language_of(account)):
            text = f"{sign} {html.escape(words(), quote=False)}"
        outbox.tell(chat_id=account.telegram_id, text=text)


@receiver(account_closing, dispatch_uid="telegram_bot.unlink")
def unlink(user: User, **_: Any) -> None:
    """Forget the person on Telegram: the next message is a stranger's. Their former account has a name, too."""
    accounts = TelegramAccount.objects.filter(user=user)
    # Before the account that it was, as everywhere.
    list(accounts.select_for_update().order_by("pk").values_list("pk"))
    joined = User.objects.filter(former_telegram_account__user=user)
    joined.update(username=f"deleted_{uuid.uuid4().hex[:12]}", anonymised_at=Now())
    ChatNotice.objects.filter(chat_id__in=accounts.values("telegram_id")).delete()
    accounts.delete()


@receiver(account_reclaimed, dispatch_uid="telegram_bot.disconnect")
def disconnect(user: User, **_: Any) -> None:
    """Part the account from one in Telegram that was connected with it, and end what would connect or sign in."""
    account = TelegramAccount.objects.filter(user=user).exclude(former_user=None).first()
    if account is not None:
        linking.part(account=account)
    for model in (LinkRequest, LoginLink):
        model.objects.filter(user=user, expires_at__gt=Now()).update(expires_at=Now())


@receiver(account_closed, dispatch_uid="telegram_bot.forget_messages")
def forget_messages(user: User, **_: Any) -> None:
    """Delete after the jobs, in the order of all locks, hence not while the account is being closed."""
    JobMessage.objects.filter(job__user=user).delete()
    MessageRef.objects.filter(job__user=user).delete()


@receiver(personal_data, dispatch_uid="telegram_bot.personal_data")
def telegram_of(user: User, **_: Any) -> Part:
    names = ("telegram_id", "username", "first_name", "language_code")
    fields = (*names, "preset__name", "created_at", "last_seen_at", "blocked_at")
    return Part(name="telegram", data=TelegramAccount.objects.filter(user=user).values(*fields).first())


@receiver(personal_data, dispatch_uid="telegram_bot.payments_of")
def payments_of(user: User, **_: Any) -> Part:
    fields = ("charge_id", "stars", "purchase__posted_delta", "state", "paid_at", "refunded_at")
    return Part(name="payments", data=list(StarPayment.objects.filter(user=user).values(*fields)))


# Prices are the operator's to decide: nothing is for sale until staff say so.
FIRST_PACKS: tuple[dict[str, Any], ...] = (
    {"name": "Starter", "credits": 250, "stars": 100},
    {"name": "Regular", "credits": 1000, "stars": 350},
    {"name": "Studio", "credits": 5000, "stars": 1500},
)


@receiver(post_migrate, dispatch_uid="telegram_bot.first_packs")
def first_packs(sender: Any, using: str = "default", **_: Any) -> None:
    """Make the packs only where there is none: staff may have renamed or removed them."""
    if sender.name != "telegram_bot" or CreditPack.objects.using(using).exists():
        return
    for position, values in enumerate(FIRST_PACKS):
        CreditPack.objects.using(using).create(position=position, **values)
