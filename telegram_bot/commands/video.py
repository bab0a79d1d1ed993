"""/video, Again, Remix and Retry: from a prompt, a button or a reply to the message that is the job."""

import contextlib
import re
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from telegram import ForceReply, Message
from telegram.error import BadRequest

from generation.database import in_database, written
from generation.errors import JobNotFound
from generation.jobs import submission
from generation.jobs.submission import VideoRequest, same_again
from generation.models import GenerationJob
from telegram_bot.commands.welcome import example_of, quote_for
from telegram_bot.models import JobMessage, MessageRef, TelegramAccount
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, command, message
from telegram_bot.sending import outbox
from telegram_bot.sending.client import send_in_place
from telegram_bot.sending.progress import status_of
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import shortened

# As `texts.sample` writes it.
SHOWN_EXAMPLE = re.compile(r"^/video (.+)$", re.MULTILINE)
Pending = JobMessage.State.PENDING
# Telegram's limit for the text that stands in the empty input field.
MAX_PLACEHOLDER = 64
# A person may mix the languages: these mean the same in any of them.
AGAIN = {"again", "once more", "repeat", "ещё", "еще", "ещё раз", "еще раз", "снова", "повтори"}

remember = in_database(outbox.remember)


@in_database
def submit(
    account: TelegramAccount,
    request: VideoRequest,
    *,
    key: str,
    place: dict[str, int | None],
    retry: bool = False,
) -> tuple[JobMessage, dict[str, Any]]:
    """Make the job and its row in the outbox, in one transaction; returns the row, and the first status to show.

    The same `key` is the same job. `place` is where the result goes: fields of JobMessage.

    Raises:
        GenerationError: it was refused.
    """
    preset = request.get("preset") or account.preset
    request["preset"] = preset if preset is not None and (preset.enabled or retry) else None
    source = GenerationJob.Source.TELEGRAM
    with transaction.atomic():
        job = submission.submit(user=account.user, source=source, idempotency_key=key, retry=retry, **request)
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


async def remember_sent(asked: Asked, sent: Message, *, about: str, **facts: Any) -> None:
    """Write down which job a message is about that was sent into the chat just now."""
    mark = partial(remember, bot_id=asked.bot.id, chat_id=asked.chat.id, message_id=sent.message_id, **facts)
    await written(mark, about=about)


@command("video", menu=gettext_lazy("Generate AI video"))
async def video(request: Request) -> None:
    """Make a video, or explain how to."""
    if request.argument:
        await make(request, {"prompt": request.argument})
    else:
        quote, example = await quote_for(request.account), await example_of()
        await request.reply(texts.video_usage(quote, example=example))


@button("sample")
async def sample(press: Press) -> None:
    """Make the example of /start, by one tap: the one that its message shows."""
    shown = SHOWN_EXAMPLE.search(press.shown_text)
    await make(press, {"prompt": shown[1] if shown else await example_of()})


async def make(asked: Asked, request: VideoRequest, *, key: str = "") -> GenerationJob:
    """Submit a job and answer with its status message, unless that was sent before or the job is settled.

    Without a `key` of its own, which a retry has, an update that is handled again finds its job.
    """
    row, status = await submit(
        asked.account, request, key=key or asked.key, place=asked.place, retry=bool(key)
    )
    if row.status_message_id is not None or row.state != Pending:
        return row.job
    await asked.acknowledge()
    where = {"reply_to": asked.about, "thread_id": row.thread_id}
    sent = await send_in_place(asked.bot.send_message, row.chat_id, **where, **status)
    mark = partial(remember_status, row, message_id=sent.message_id, text=status["text"])
    if await written(mark, about=f"the status message of job {row.job_id.hex}"):
        asked.live.track(job_id=row.job_id, chat_id=row.chat_id)
    else:
        # A quick node: the result overtook the message that announces it.
        with contextlib.suppress(BadRequest):  # it is removed already
            await asked.bot.delete_message(row.chat_id, sent.message_id)
    return row.job


@in_database
def own_job(account: TelegramAccount, hex_id: str) -> GenerationJob:
    """Find the job a button carries, if it is the person's own: a client may send any data, others see the buttons.

    Raises:
        JobNotFound: it is another's, or deleted.
    """
    try:
        own = GenerationJob.objects.select_related("preset").filter(user=account.user_id, deleted_at=None)
        return own.get(pk=hex_id)
    except (GenerationJob.DoesNotExist, ValueError, ValidationError):
        raise JobNotFound(_("This video is not yours, or it was deleted.")) from None


@in_database
def meant_by(request: Request) -> MessageRef | None:
    """Find the job that a message replies to; otherwise the last one, in a private chat."""
    chat = {"bot_id": request.bot.id, "chat_id": request.chat.id}
    replied = request.message.reply_to_message
    if replied and (post := outbox.find(**chat, message_id=replied.message_id)):
        return post
    return outbox.last_in(**chat, thread_id=request.thread_id) if request.in_private else None


@message("text")
async def talk(request: Request) -> None:
    """Take a text as a prompt; or as a reply to a message: the same again, or the changed prompt it asks for."""
    says_again = request.argument.casefold().strip(" .!…") in AGAIN
    post = await meant_by(request) if says_again or request.message.reply_to_message else None
    if post is not None and says_again:
        # The same seed would give the same picture.
        await make(request, {**same_again(post.job), "seed": None})
    elif post is not None and post.asks_for_prompt and post.job.user_id == request.person.pk:
        # Another prompt for the same seed, so that only what was changed changes.
        remix: VideoRequest = {**same_again(post.job), "prompt": request.argument, "remixed_from": post.job}
        await make(request, remix)
    elif request.addressed:
        await make(request, {"prompt": request.argument})


@button("again")
async def again(press: Press) -> None:
    """Make the prompt again with another seed."""
    job = await own_job(press.account, press.argument)
    await make(press, {**same_again(job), "seed": None})


@button("retry")
async def retry(press: Press) -> None:
    """Make a failed job once more, even if it is pressed twice, or on the web as well."""
    job = await own_job(press.account, press.argument)
    retried = await make(press, same_again(job), key=f"retry-{job.id.hex}")
    await press.answer("" if retried.is_live else _("You tried this one again already: see below."))


@button("remix")
async def remix(press: Press) -> None:
    """Ask for the changed prompt; the reply to the question is it."""
    job = await own_job(press.account, press.argument)
    placeholder = shortened(job.prompt, MAX_PLACEHOLDER)
    asks = ForceReply(selective=True, input_field_placeholder=placeholder)
    mention = "" if press.in_private else press.query.from_user.mention_html()
    sent = await press.reply(texts.changed_prompt(job.prompt, mention=mention), reply_markup=asks)
    await remember_sent(press, sent, job=job, about=f"the question {press.key}", asks_for_prompt=True)
