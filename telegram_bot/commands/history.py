"""Stopping a video that is being made."""

import logging
from functools import partial

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy
from telegram.error import BadRequest

from accounts.models import CreditAccount, User
from generation import sharing
from generation.database import in_database
from generation.errors import CannotCancel, VideoNotReady
from generation.jobs import events, lifecycle
from generation.models import GenerationJob
from telegram_bot.commands.again import own_job
from telegram_bot.models import JobMessage
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, command
from telegram_bot.sending import outbox
from telegram_bot.sending.retrying import written
from telegram_bot.texts import jobs
from telegram_bot.texts import jobs as words

logger = logging.getLogger(__name__)

LENGTH = 5


@in_database
def last_jobs(person: User) -> list[GenerationJob]:
    return list(GenerationJob.objects.filter(user=person, deleted_at=None).order_by("-created_at")[:LENGTH])


@in_database
def file_id_of(job: GenerationJob, *, bot_id: int) -> str:
    """The name of its file at Telegram; empty when this bot never sent it."""
    row = JobMessage.objects.filter(job=job, bot_id=bot_id).first()
    return row.file_id if row else ""


@in_database
def caption_of(job: GenerationJob) -> str:
    return words.caption(job, balance_left=CreditAccount.objects.get(user=job.user_id).balance)


@in_database
@transaction.atomic
def deliver_here(job: GenerationJob, *, place: dict[str, int | None]) -> None:
    """Put it into the outbox again, for this chat, unless it is there already."""
    fresh: dict[str, object] = {
        "state": JobMessage.State.PENDING,
        "next_attempt_at": Now(),
        "attempts": 0,
        "file_id": "",
        "status_message_id": None,
        "upload_began_at": None,
        "error": "",
    }
    row, created = JobMessage.objects.get_or_create(job=job, defaults=place | fresh)
    if not created:
        settled = JobMessage.objects.filter(pk=row.pk).exclude(state=JobMessage.State.PENDING)
        settled.update(**place, **fresh)
    events.publish(job)  # wakes the deliveries


@command("history", menu=gettext_lazy("Show your last videos"))
async def history(request: Request) -> None:
    latest = await last_jobs(request.person)
    await request.reply(jobs.history(latest), reply_markup=jobs.of_history(latest))


@button("resend")
async def resend(press: Press) -> None:
    """By the name its file has at Telegram; what was never sent, or is known no more, is uploaded by `delivery`."""
    job = await own_job(press.account, press.argument)
    if job.state != GenerationJob.State.COMPLETED:
        raise VideoNotReady
    file_id = await file_id_of(job, bot_id=press.bot.id)
    if file_id and await _sent(press, job, file_id):
        return
    await deliver_here(job, place={"bot_id": press.bot.id, "chat_id": press.chat.id, "reply_to": press.about})
    await press.answer(jobs.on_its_way())


async def _sent(press: Press, job: GenerationJob, file_id: str) -> bool:
    """False when Telegram does not know the file."""
    await press.acknowledge()
    try:
        message = await press.bot.send_video(
            press.chat.id,
            file_id,
            caption=await caption_of(job),
            reply_markup=jobs.of_job(job),
            reply_parameters=press.reply_to_asker,
        )
    except BadRequest as error:
        logger.info("job %s cannot be sent again by its file_id: %s", job.id.hex, error)
        return False
    await written(partial(remember_post, press, job, message.message_id), about=f"the video of {press.key}")
    return True


@in_database
def remember_post(press: Press, job: GenerationJob, message_id: int) -> None:
    outbox.remember(job=job, bot_id=press.bot.id, chat_id=press.chat.id, message_id=message_id)


# Share: a link by which anybody may watch the video, until it is taken back.


@in_database
def address_of(job: GenerationJob) -> str:
    return sharing.address(sharing.share(job=job))


@in_database
def revoke(job: GenerationJob) -> None:
    sharing.revoke(job=job)


@button("share")
async def share(press: Press) -> None:
    """The link, in a message that can be passed on."""
    job = await own_job(press.account, press.argument)
    address = await address_of(job)
    await press.reply(jobs.shared(job.prompt, address=address), reply_markup=jobs.of_share(job))


@button("unshare")
async def unshare(press: Press) -> None:
    """The link works no more; its message says so."""
    job = await own_job(press.account, press.argument)
    await revoke(job)
    await press.show(jobs.not_shared(job.prompt))


# /history: the last videos and what became of them, each to be had again.


REASON = "Canceled in Telegram"


@in_database
def cancel_newest(person: User) -> GenerationJob | None:
    """The job that was canceled; None when none is live.

    Raises:
        CannotCancel: all that are live are being stored.
    """
    refused: CannotCancel | None = None
    live = GenerationJob.objects.filter(user=person, state__in=GenerationJob.LIVE)
    for job in live.order_by("-created_at"):
        try:
            return lifecycle.cancel(job=job, actor=person, reason=REASON)
        except CannotCancel as error:
            refused = error
    if refused is not None:
        raise refused
    return None


@command("cancel", menu=gettext_lazy("Cancel the video being made"))
async def cancel(request: Request) -> None:
    """Stop the newest video that is being made."""
    job = await cancel_newest(request.person)
    await request.reply(jobs.nothing_to_cancel() if job is None else jobs.canceled(job.prompt))


@button("cancel")
async def cancel_this(press: Press) -> None:
    """Stop the video that the message is about. The message itself says so then: see `delivery`."""
    job = await own_job(press.account, press.argument)
    await in_database(lifecycle.cancel)(job=job, actor=press.person, reason=REASON)
    await press.answer(jobs.was_canceled())
