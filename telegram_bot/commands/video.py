"""/video: from a prompt to the message that is the job."""

import contextlib
from functools import partial

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy
from telegram.error import BadRequest

from generation.database import in_database
from generation.jobs import submission
from generation.jobs.submission import VideoRequest
from generation.models import GenerationJob
from generation.retrying import written
from telegram_bot.commands.welcome import quote_for
from telegram_bot.models import JobMessage, TelegramAccount
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command
from telegram_bot.sending import outbox
from telegram_bot.sending.client import quoting
from telegram_bot.sending.progress import Status, status_of
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import example

Pending = JobMessage.State.PENDING


@in_database
def submit(
    account: TelegramAccount, request: VideoRequest, *, key: str, place: dict[str, int | None]
) -> tuple[JobMessage, Status]:
    """Make the job and its row in the outbox, in one transaction; returns the row, and the first status to show.

    The same `key` is the same job. `place` is where the result goes: bot_id, chat_id, reply_to.

    Raises:
        GenerationError: it was refused.
    """
    preset = request.get("preset") or account.preset
    request["preset"] = preset if preset is not None and preset.enabled else None
    source = GenerationJob.Source.TELEGRAM
    with transaction.atomic():
        job = submission.submit(user=account.user, source=source, idempotency_key=key, **request)
        row, _ = JobMessage.objects.get_or_create(job=job, defaults=place)
    # A job that was there before may have ended without a row to be delivered by.
    missed = JobMessage.objects.filter(pk=row.pk, state=Pending, next_attempt_at=None)
    missed.filter(job__finished_at__isnull=False).update(next_attempt_at=Now())
    row.job = job
    return row, status_of(job)


@in_database
@transaction.atomic
def remember_status(row: JobMessage, *, message_id: int, text: str) -> bool:
    """Store the status message. False when the result is out already, so that it is to be removed at once."""
    pending = JobMessage.objects.filter(pk=row.pk, state=Pending)
    if not pending.update(status_message_id=message_id, last_text=text):
        return False
    outbox.remember(job=row.job, bot_id=row.bot_id, chat_id=row.chat_id, message_id=message_id)
    return True


@command("video", menu=gettext_lazy("Generate AI video"))
async def video(request: Request) -> None:
    """Make a video, or explain how to."""
    if request.argument:
        await make(request, {"prompt": request.argument})
    else:
        await request.reply(texts.video_usage(await quote_for(request.account)))


@button("sample")
async def sample(press: Press) -> None:
    """The example of /start, by one tap."""
    await make(press, {"prompt": example()})


async def make(asked: Asked, request: VideoRequest, *, key: str = "") -> GenerationJob:
    """Submit a job and answer with its status message, unless that was sent before or the job is settled.

    Without a `key` of its own, an update that is handled again finds its job.
    """
    place = {"bot_id": asked.bot.id, "chat_id": asked.chat.id, "reply_to": asked.about}
    row, status = await submit(asked.account, request, key=key or asked.key, place=place)
    if row.status_message_id is not None or row.state != Pending:
        return row.job
    await asked.acknowledge()
    sent = await asked.bot.send_message(
        row.chat_id, status.text, reply_markup=status.buttons, reply_parameters=quoting(asked.about)
    )
    mark = partial(remember_status, row, message_id=sent.message_id, text=status.text)
    if await written(mark, about=f"the status message of job {row.job_id.hex}"):
        asked.live.track(job_id=row.job_id, chat_id=row.chat_id)
    else:
        # A quick node: the result overtook the message that announces it.
        with contextlib.suppress(BadRequest):  # it is removed already
            await asked.bot.delete_message(row.chat_id, sent.message_id)
    return row.job
