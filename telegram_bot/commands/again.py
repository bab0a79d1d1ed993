"""Again, Remix and Retry: another video like one that was made, by a button or by a reply to its message."""

from functools import partial

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from telegram import ForceReply

from generation.database import in_database
from generation.errors import JobNotFound
from generation.jobs.submission import VideoRequest, same_again
from generation.models import GenerationJob
from generation.retrying import written
from telegram_bot.commands.video import make
from telegram_bot.models import JobPost, TelegramAccount
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, message
from telegram_bot.sending import outbox
from telegram_bot.texts import jobs as texts
from telegram_bot.texts.parts import shortened

# Telegram's limit for the text that stands in the empty input field.
MAX_PLACEHOLDER = 64
# A person may mix the languages: these mean the same in any of them.
AGAIN = {"again", "once more", "repeat", "ещё", "еще", "ещё раз", "еще раз", "снова", "повтори"}

remember = in_database(outbox.remember)


@in_database
def own_job(account: TelegramAccount, hex_id: str) -> GenerationJob:
    """The job a button carries, if it is the person's own: a client may send any data, and others see the buttons.

    Raises:
        JobNotFound: it is another's, or deleted.
    """
    try:
        own = GenerationJob.objects.select_related("preset").filter(user=account.user_id, deleted_at=None)
        return own.get(pk=hex_id)
    except (GenerationJob.DoesNotExist, ValueError, ValidationError):
        raise JobNotFound(_("This video is not yours, or it was deleted.")) from None


@in_database
def meant_by(request: Request) -> JobPost | None:
    """The job that a message replies to; otherwise the last one, in a private chat."""
    chat = {"bot_id": request.bot.id, "chat_id": request.chat.id}
    replied = request.message.reply_to_message
    if replied and (post := outbox.find(**chat, message_id=replied.message_id)):
        return post
    return outbox.last_in(**chat) if request.in_private else None


@message("text")
async def talk(request: Request) -> None:
    """A prompt; or a reply to one of our messages: the same again, or the changed prompt it asks for."""
    says_again = request.argument.casefold().strip(" .!…") in AGAIN
    post = await meant_by(request) if says_again or request.message.reply_to_message else None
    if post is not None and says_again:
        await make(request, with_another_seed(post.job))
    elif post is not None and post.asks_for_prompt and post.job.user_id == request.person.pk:
        # Another prompt for the same seed, so that only what was changed changes.
        remix = same_again(post.job)
        remix["prompt"], remix["remixed_from"] = request.argument, post.job
        await make(request, remix)
    elif request.addressed:
        await make(request, {"prompt": request.argument})


def with_another_seed(job: GenerationJob) -> VideoRequest:
    """The same again but for the seed, which would give the same picture."""
    request = same_again(job)
    request["seed"] = None
    return request


@button("again")
async def again(press: Press) -> None:
    """The same prompt with another seed."""
    await make(press, with_another_seed(await own_job(press.account, press.argument)))


@button("retry")
async def retry(press: Press) -> None:
    """A failed job once more, however often it is pressed and at whichever door."""
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
    mark = partial(
        remember,
        job=job,
        bot_id=press.bot.id,
        chat_id=press.chat.id,
        message_id=sent.message_id,
        asks_for_prompt=True,
    )
    await written(mark, about=f"the question {press.key}")
