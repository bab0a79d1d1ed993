"""/video: from a wish to the message that is the job."""

import contextlib
from dataclasses import dataclass
from functools import partial

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy
from telegram.error import BadRequest

from generation.database import in_database
from generation.jobs import submission
from generation.models import GenerationJob, Preset
from telegram_bot.commands.welcome import quote_for
from telegram_bot.models import JobMessage, TelegramAccount
from telegram_bot.receiving.context import Asked, Press, Request, quoting
from telegram_bot.receiving.routes import button, command
from telegram_bot.sending import outbox
from telegram_bot.sending.progress import Status, status_of
from telegram_bot.sending.retrying import written
from telegram_bot.texts import jobs
from telegram_bot.texts.parts import example

Pending = JobMessage.State.PENDING


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody wants to see. The same `key` is the same job; without `preset` it is the one they chose."""

    prompt: str
    key: str
    preset: Preset | None = None
    seed: int | None = None
    negative_prompt: str = ""
    remixed_from: GenerationJob | None = None


@dataclass(frozen=True)
class Accepted:
    """A job, its row in the outbox, and what its status message says first."""

    job: GenerationJob
    row: JobMessage
    status: Status

    @property
    def is_shown(self) -> bool:
        """Its status message was sent before, or has nothing to say any more."""
        return self.row.status_message_id is not None or self.row.state != Pending


@in_database
def submit(account: TelegramAccount, wish: Wish, *, place: dict[str, int | None]) -> Accepted:
    """The job and its row in the outbox, in one transaction.

    `place` is where the result goes: bot_id, chat_id, reply_to.

    Raises:
        GenerationError: it was refused.
    """
    chosen = wish.preset or account.preset
    with transaction.atomic():
        job = submission.submit(
            user=account.user,
            prompt=wish.prompt,
            source=GenerationJob.Source.TELEGRAM,
            preset=chosen if chosen is not None and chosen.enabled else None,
            seed=wish.seed,
            negative_prompt=wish.negative_prompt,
            idempotency_key=wish.key,
            remixed_from=wish.remixed_from,
        )
        row, _ = JobMessage.objects.get_or_create(job=job, defaults=place)
    # A job that was there before may have ended without a row to be delivered by.
    missed = JobMessage.objects.filter(pk=row.pk, state=Pending, next_attempt_at=None)
    missed.filter(job__finished_at__isnull=False).update(next_attempt_at=Now())
    return Accepted(job, row, status_of(job))


@in_database
@transaction.atomic
def remember_status(row: JobMessage, *, message_id: int, text: str) -> bool:
    """False when the result is out already, so that the status message is to be removed at once."""
    pending = JobMessage.objects.filter(pk=row.pk, state=Pending)
    if not pending.update(status_message_id=message_id, last_text=text):
        return False
    outbox.remember(job=row.job, bot_id=row.bot_id, chat_id=row.chat_id, message_id=message_id)
    return True


@command("video", menu=gettext_lazy("Generate AI video"))
async def video(request: Request) -> None:
    """Make a video, or say how."""
    if request.argument:
        await make(request, Wish(prompt=request.argument, key=request.key))
    else:
        await request.reply(jobs.video_usage(await quote_for(request.account)))


@button("sample")
async def sample(press: Press) -> None:
    """The example of /start, by one tap."""
    await make(press, Wish(prompt=example(), key=press.key))


async def make(asked: Asked, wish: Wish) -> Accepted:
    """Accept a wish and answer with the message that is the job, unless it stands there already."""
    place = {"bot_id": asked.bot.id, "chat_id": asked.chat.id, "reply_to": asked.about}
    accepted = await submit(asked.account, wish, place=place)
    if not accepted.is_shown:
        await _show_status(asked, accepted)
    return accepted


async def _show_status(asked: Asked, accepted: Accepted) -> None:
    row, status = accepted.row, accepted.status
    await asked.acknowledge()
    sent = await asked.bot.send_message(
        row.chat_id, status.text, reply_markup=status.buttons, reply_parameters=quoting(asked.about)
    )
    mark = partial(remember_status, row, message_id=sent.message_id, text=status.text)
    if await written(mark, about=f"the status message of job {accepted.job.id.hex}"):
        asked.live.track(job_id=accepted.job.id, chat_id=row.chat_id)
    else:
        # A quick node: the result overtook the message that announces it.
        with contextlib.suppress(BadRequest):  # and somebody else was quicker still
            await asked.bot.delete_message(row.chat_id, sent.message_id)
