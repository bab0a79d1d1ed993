"""Stopping a video that is being made."""

from django.utils.translation import gettext_lazy

from accounts.models import User
from generation import lifecycle
from generation.database import in_database
from generation.errors import CannotCancel
from generation.models import GenerationJob
from telegram_bot.commands.again import own_job
from telegram_bot.requests import Press, Request
from telegram_bot.routes import button, command
from telegram_bot.texts import answers

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
    await request.reply(answers.nothing_to_cancel() if job is None else answers.canceled(job.prompt))


@button("cancel")
async def cancel_this(press: Press) -> None:
    """Stop the video that the message is about. The message itself says so then: see `delivery`."""
    job = await own_job(press.account, press.argument)
    await in_database(lifecycle.cancel)(job=job, actor=press.person, reason=REASON)
    await press.answer(answers.was_canceled())
