"""/history, /cancel and sharing: what may be done about videos that were asked for."""

import logging

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop
from telegram.error import BadRequest

from accounts.models import CreditAccount, User
from generation import sharing
from generation.database import in_database
from generation.errors import CannotCancel, VideoNotReady, deducted
from generation.jobs import lifecycle
from generation.models import GenerationJob
from telegram_bot import wakeup
from telegram_bot.commands.video import own_job, remember_sent
from telegram_bot.commands.welcome import example_of
from telegram_bot.models import JobMessage
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, command
from telegram_bot.sending.client import send_in_place
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import lines, prompt_line, row

logger = logging.getLogger(__name__)

LENGTH = 5
REASON = gettext_noop("Canceled in Telegram")  # stored in English, translated where it is shown


@in_database
def last_jobs(person: User) -> list[GenerationJob]:
    return list(GenerationJob.objects.filter(user=person, deleted_at=None).order_by("-created_at")[:LENGTH])


@in_database
def sent_before(job: GenerationJob, *, bot_id: int) -> tuple[str, str]:
    """Find the id of its file at Telegram, empty when this bot never sent it; and a caption."""
    row = JobMessage.objects.filter(job=job, bot_id=bot_id).first()
    balance = CreditAccount.objects.get(user=job.user_id).balance
    return row.file_id if row else "", texts.caption(job, balance_left=balance)


@in_database
@transaction.atomic
def deliver_here(job: GenerationJob, *, place: dict[str, int | None]) -> None:
    """Put a result into the outbox again, for this chat, unless it is there already."""
    JobMessage.objects.filter(job=job).exclude(state=JobMessage.State.PENDING).delete()
    JobMessage.objects.get_or_create(job=job, defaults={**place, "next_attempt_at": Now()})
    wakeup.call(wakeup.OUTBOX)


@command("history", menu=gettext_lazy("Show your last videos"))
async def history(request: Request) -> None:
    request.must_be_private()
    latest = await last_jobs(request.person)
    text = texts.history(latest, example=await example_of())
    await request.reply(text, reply_markup=texts.of_history(latest))


@button("resend")
async def resend(press: Press) -> None:
    """Send a video again by the id its file has at Telegram; without one, or an unknown one, it is uploaded."""
    job = await own_job(press.account, press.argument)
    if job.state != GenerationJob.State.COMPLETED:
        raise VideoNotReady
    file_id, caption = await sent_before(job, bot_id=press.bot.id)
    if file_id and await _sent(press, job, file_id, caption):
        return
    await deliver_here(job, place=press.place)
    await press.answer(_("The video is on its way."))


async def _sent(press: Press, job: GenerationJob, file_id: str, caption: str) -> bool:
    """Send the file; False when Telegram does not know it."""
    await press.acknowledge()
    try:
        message = await send_in_place(
            press.bot.send_video,
            press.chat.id,
            file_id,
            reply_to=press.reply_to,
            thread_id=press.thread_id,
            caption=caption,
            reply_markup=texts.of_job(job),
        )
    except BadRequest as error:
        logger.info("job %s cannot be sent again by its file_id: %s", job.id.hex, error)
        return False
    await remember_sent(press, message, job=job, about=f"the video of {press.key}")
    return True


@button("share")
async def share(press: Press) -> None:
    """Make a link for everyone, in a message that can be passed on."""
    job = await own_job(press.account, press.argument)
    address = sharing.address(await in_database(sharing.share)(job=job))
    stop = row((_("Stop sharing"), "unshare"), argument=job.id.hex)
    text, buttons = texts.shared(job.prompt, address=address, below=stop)
    await press.reply(text, reply_markup=buttons)


@button("unshare")
async def unshare(press: Press) -> None:
    """End the link; its message shows it."""
    job = await own_job(press.account, press.argument)
    await in_database(sharing.revoke)(job=job)
    await press.show(lines(_("🔗 The link does not work any more."), prompt_line(job.prompt)))


@in_database
def cancel_newest(person: User) -> GenerationJob | None:
    """Cancel the newest job; None when none is live.

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
    if job is None:
        await request.reply(_("There is nothing to cancel: no video of yours is being made."))
    else:
        await request.reply(texts.canceled(job))


@button("cancel")
async def cancel_this(press: Press) -> None:
    """Stop the video that the message is about. The delivery of its result changes the message."""
    job = await own_job(press.account, press.argument)
    job = await in_database(lifecycle.cancel)(job=job, actor=press.person, reason=REASON)
    await press.answer(f"{_('Canceled.')} {deducted(job.cancel_fee)}")
