"""What staff did about somebody's videos reaches their chat as well."""

import uuid
from typing import Any

from django.conf import settings
from django.db.models.functions import Now
from django.db.models.signals import post_migrate
from django.dispatch import receiver
from django.utils import translation

from accounts import notices as accounts_notices
from accounts.models import Notice as UserNotice
from accounts.models import User
from accounts.privacy import Part
from accounts.signals import account_closed, account_closing, personal_data
from generation.models import GenerationJob
from generation.signals import job_finished, job_retried
from telegram_bot import language
from telegram_bot.models import CreditPack, JobMessage, JobPost, Notice, StarPayment, TelegramAccount
from telegram_bot.sending import notices
from telegram_bot.texts.parts import escaped


@receiver(job_finished, dispatch_uid="telegram_bot.make_delivery_due")
def make_delivery_due(job: GenerationJob, **_: Any) -> None:
    JobMessage.objects.filter(job=job, state=JobMessage.State.PENDING).update(next_attempt_at=Now())


@receiver(account_closing, dispatch_uid="telegram_bot.unlink")
def unlink(user: User, **_: Any) -> None:
    """Whoever writes to the bot next is somebody new. Who they were before they were joined has a name, too."""
    joined = User.objects.filter(former_telegram_account__user=user)
    joined.update(username=f"deleted_{uuid.uuid4().hex[:12]}", anonymised_at=Now())
    accounts = TelegramAccount.objects.filter(user=user)
    Notice.objects.filter(chat_id__in=accounts.values("telegram_id")).delete()
    accounts.delete()


@receiver(account_closed, dispatch_uid="telegram_bot.forget_messages")
def forget_messages(user: User, **_: Any) -> None:
    """In the order of all locks: after the jobs, hence not while the account is being closed."""
    JobMessage.objects.filter(job__user=user).delete()
    JobPost.objects.filter(job__user=user).delete()


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
    """Only where there is none: staff may have renamed or removed them."""
    if sender.name != "telegram_bot" or CreditPack.objects.using(using).exists():
        return
    for position, values in enumerate(FIRST_PACKS):
        CreditPack.objects.using(using).create(position=position, **values)


# A job that ends makes its delivery due in the same transaction, in whichever process it ends. Who leaves is
# unlinked.
#


@receiver(accounts_notices.made, dispatch_uid="telegram_bot.pass_notice_on")
def pass_notice_on(notice: UserNotice, **_: Any) -> None:
    """In the transaction that makes the notice."""
    account = TelegramAccount.objects.select_related("user").filter(user=notice.user, blocked_at=None).first()
    if account is None or not settings.TELEGRAM_BOT_TOKEN:
        return
    with translation.override(language.language_of(account)):
        text = f"ℹ️ {escaped(accounts_notices.text_of(notice))}"
    notices.tell(chat_id=account.telegram_id, text=text)


@receiver(job_retried, dispatch_uid="telegram_bot.deliver_retried")
def deliver_retried(original: GenerationJob, job: GenerationJob, **_: Any) -> None:
    """What was asked for in a chat comes to that chat, also when staff have it made again."""
    asked = JobMessage.objects.filter(job=original).first()
    if asked is not None:
        JobMessage.objects.create(
            job=job, bot_id=asked.bot_id, chat_id=asked.chat_id, reply_to=asked.reply_to
        )
