"""What staff did about somebody's videos reaches their chat as well."""

from typing import Any

from django.conf import settings
from django.dispatch import receiver
from django.utils import translation

from accounts import notices as accounts_notices
from accounts.models import Notice as UserNotice
from generation.models import GenerationJob
from generation.signals import job_retried
from telegram_bot import notices, speech
from telegram_bot.models import JobMessage, TelegramAccount
from telegram_bot.texts.parts import escaped


@receiver(accounts_notices.made, dispatch_uid="telegram_bot.pass_notice_on")
def pass_notice_on(notice: UserNotice, **_: Any) -> None:
    """In the transaction that makes the notice."""
    account = TelegramAccount.objects.select_related("user").filter(user=notice.user, blocked_at=None).first()
    if account is None or not settings.TELEGRAM_BOT_TOKEN:
        return
    with translation.override(speech.language_of(account)):
        text = f"ℹ️ {escaped(accounts_notices.words(notice))}"
    notices.tell(chat_id=account.telegram_id, text=text)


@receiver(job_retried, dispatch_uid="telegram_bot.deliver_retried")
def deliver_retried(original: GenerationJob, job: GenerationJob, **_: Any) -> None:
    """What was asked for in a chat comes to that chat, also when staff have it made again."""
    asked = JobMessage.objects.filter(job=original).first()
    if asked is not None:
        JobMessage.objects.create(
            job=job, bot_id=asked.bot_id, chat_id=asked.chat_id, reply_to=asked.reply_to
        )
