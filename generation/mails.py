"""Mails to users who asked for them: a video is ready, or has failed. The reconciler sends them."""

import asyncio
import logging
from collections.abc import Sequence
from smtplib import SMTPException
from typing import Any

from allauth.account.models import EmailAddress
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import translation
from django.utils.text import Truncator
from django.utils.translation import gettext as _

from generation.database import in_database, written
from generation.errors import reason_of
from generation.jobs import locks
from generation.models import GenerationJob, ReadyMail
from generation.outbox import Channel, Outbox, TryLater

logger = logging.getLogger(__name__)

Source, State = GenerationJob.Source, GenerationJob.State
# Jobs of the site only: the bot and the API have notifications of their own.
SOURCES = (Source.WEB, Source.STAFF)
# For a process that dies while it sends; then the mail is sent by another, perhaps for the second time.
CLAIM_SECONDS = 120
MOST_ATTEMPTS = 30  # two hours, about
SUBJECT_LENGTH = 60


def expect(jobs: Sequence[GenerationJob], **_: Any) -> None:
    """Have the owners of jobs that end in this transaction get a mail, if they chose so."""
    if settings.EMAIL_HOST:
        ReadyMail.objects.bulk_create(
            ReadyMail(job=job, next_attempt_at=Now())
            for job in jobs
            if job.user.mail_when_ready
            and job.source in SOURCES
            and job.state in (State.COMPLETED, State.FAILED)
        )


def compose(mail: ReadyMail) -> EmailMessage | None:
    """Write the mail in its reader's language; None when it is not wanted any more."""
    job = GenerationJob.objects.select_related("user").get(pk=mail.job_id)
    user = job.user
    address = EmailAddress.objects.filter(user=user, verified=True).order_by("-primary").first()
    if address is None or job.deleted_at is not None or not (user.is_active and user.mail_when_ready):
        return None
    is_ready = job.state == State.COMPLETED
    with translation.override(user.language or settings.LANGUAGE_CODE):
        heading = _("Your video is ready") if is_ready else _("Your video failed")
        parts = [
            f"{heading}: {settings.SITE_URL}{reverse('video', args=[job.pk])}",
            f"“{job.prompt}”",
            "" if is_ready else reason_of(job.error_message),
            _("You get this mail because you chose so on the page of your account: %(address)s")
            % {"address": settings.SITE_URL + reverse("account")},
        ]
        prompt = Truncator(" ".join(job.prompt.split())).chars(SUBJECT_LENGTH)
        text = "\n\n".join(filter(None, parts)) + "\n"
        return EmailMessage(f"{heading}: {prompt}", text, to=[address.email])


class MailChannel(Channel[ReadyMail]):
    """Sends each mail once, but for a process that dies between sending it and writing that down."""

    table = ReadyMail

    async def deliver(self, row: ReadyMail) -> None:
        if not await in_database(_claim)(row):
            return
        message = await in_database(compose)(row)
        if message is not None:
            try:
                await asyncio.to_thread(message.send)
            except (SMTPException, OSError) as error:
                if row.attempts + 1 < MOST_ATTEMPTS:
                    raise TryLater(repr(error)) from error
                logger.exception("the mail about job %s could not be sent", row.job_id)
        await written(in_database(row.delete), about=f"the mail about job {row.job_id}")


def _claim(row: ReadyMail) -> bool:
    """Keep other reconcilers from the row for a while; False when one of them was faster."""
    due = ReadyMail.objects.filter(pk=row.pk, next_attempt_at__lte=Now())
    return bool(due.update(next_attempt_at=locks.until(CLAIM_SECONDS)))


async def send_for_ever() -> None:
    async with asyncio.TaskGroup() as sending:
        await Outbox([MailChannel()], start=sending.create_task, wakeup=asyncio.Event()).run()
