"""/video: from a prompt to the message that is the job."""

import uuid
from functools import partial

from django.db import transaction
from django.utils.translation import gettext_lazy

from accounts.models import User
from generation import lifecycle
from generation.database import in_database
from generation.models import GenerationJob
from telegram_bot.commands.welcome import quote_for
from telegram_bot.live import status_text
from telegram_bot.marks import written
from telegram_bot.models import JobMessage
from telegram_bot.requests import Asked, Request, quoting
from telegram_bot.routes import command
from telegram_bot.texts import answers


@in_database
def submit(person: User, prompt: str, *, key: str, place: dict[str, int | None]) -> tuple[JobMessage, str]:
    """The job and its row in the outbox, in one transaction; what the status message says first.

    `place` is where the result goes: bot_id, chat_id, reply_to.

    Raises:
        GenerationError: it was refused.
    """
    with transaction.atomic():
        source = GenerationJob.Source.TELEGRAM
        job = lifecycle.submit(user=person, prompt=prompt, source=source, idempotency_key=key)
        row, _ = JobMessage.objects.get_or_create(job=job, defaults=place)
    return row, status_text(job)


@in_database
def remember_status(row: JobMessage, *, message_id: int, text: str) -> bool:
    """False when the result is out already, so that the status message is to be removed at once."""
    pending = JobMessage.objects.filter(pk=row.pk, state=JobMessage.State.PENDING)
    return bool(pending.update(status_message_id=message_id, last_text=text))


@command("video", menu=gettext_lazy("Generate AI video"))
async def video(request: Request) -> None:
    """Make a video, or say how."""
    if not request.argument:
        await request.reply(answers.video_usage(await quote_for(request.person)))
        return
    place = {"bot_id": request.bot.id, "chat_id": request.chat.id, "reply_to": request.about}
    row, text = await submit(request.person, request.argument, key=request.key, place=place)
    if row.status_message_id is None and row.state == JobMessage.State.PENDING:
        await _show_status(request, row, text)


async def _show_status(asked: Asked, row: JobMessage, text: str) -> None:
    sent = await asked.bot.send_message(row.chat_id, text, reply_parameters=quoting(asked.about))
    job_id: uuid.UUID = row.job_id
    mark = partial(remember_status, row, message_id=sent.message_id, text=text)
    if await written(mark, about=f"the status message of job {job_id.hex}"):
        asked.live.track(job_id=job_id, chat_id=row.chat_id)
    else:
        # A quick node: the result overtook the message that announces it.
        await asked.bot.delete_message(row.chat_id, sent.message_id)
