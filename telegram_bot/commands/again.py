"""Again, Remix and Retry: another video like one that was made, by a button or by a reply to its message."""

from dataclasses import replace

from django.core.exceptions import ValidationError
from telegram import ForceReply

from generation.database import in_database
from generation.errors import JobNotFound
from generation.models import GenerationJob
from telegram_bot.commands.video import Wish, make
from telegram_bot.models import JobPost, TelegramAccount
from telegram_bot.receiving.context import Asked, Press, Request
from telegram_bot.receiving.routes import button, message
from telegram_bot.sending import outbox
from telegram_bot.sending.retrying import written
from telegram_bot.texts import jobs
from telegram_bot.texts.parts import shortened

# Telegram's limit for what stands in the empty input field.
MAX_PLACEHOLDER = 64
# A person may mix the languages: these mean the same in any of them.
AGAIN = {"again", "once more", "repeat", "ещё", "еще", "ещё раз", "еще раз", "снова", "повтори"}


@in_database
def own_job(account: TelegramAccount, hex_id: str) -> GenerationJob:
    """The job a button carries: somebody's own, also when the button stands in a group.

    Raises:
        JobNotFound: it is another's, or deleted. Whoever has a client of their own can send any data.
    """
    try:
        own = GenerationJob.objects.select_related("preset").filter(user=account.user_id, deleted_at=None)
        return own.get(pk=hex_id)
    except (GenerationJob.DoesNotExist, ValueError, ValidationError):
        raise JobNotFound(jobs.not_yours()) from None


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
    """A prompt; or what is said to one of our messages: the same again, or the changed prompt it asks for."""
    says_again = request.argument.casefold().strip(" .!…") in AGAIN
    post = await meant_by(request) if says_again or request.message.reply_to_message else None
    if post is not None and says_again:
        await make(request, same(post.job, key=request.key))
    elif post is not None and post.asks_for_prompt and post.job.user_id == request.person.pk:
        await make(request, remix_of(post.job, prompt=request.argument, key=request.key))
    elif request.addressed:
        await make(request, Wish(prompt=request.argument, key=request.key))


@button("again")
async def again(press: Press) -> None:
    """The same prompt with another seed."""
    job = await own_job(press.account, press.argument)
    await make(press, same(job, key=press.key))


@button("retry")
async def retry(press: Press) -> None:
    """A failed job once more, however often it is pressed and at whichever door."""
    job = await own_job(press.account, press.argument)
    wish = replace(same(job, key=f"retry-{job.id.hex}"), seed=job.seed)
    accepted = await make(press, wish)
    await press.answer("" if accepted.job.is_live else jobs.retried_before())


@button("remix")
async def remix(press: Press) -> None:
    """Ask for the changed prompt; the reply to the question is it."""
    job = await own_job(press.account, press.argument)
    placeholder = shortened(job.prompt, MAX_PLACEHOLDER)
    asks = ForceReply(selective=True, input_field_placeholder=placeholder)
    mention = "" if press.in_private else press.query.from_user.mention_html()
    sent = await press.reply(jobs.changed_prompt(job.prompt, mention=mention), reply_markup=asks)
    await written(lambda: remember_question(press, job, sent.message_id), about=f"the question {press.key}")


@in_database
def remember_question(asked: Asked, job: GenerationJob, message_id: int) -> None:
    chat_id, bot_id = asked.chat.id, asked.bot.id
    outbox.remember(job=job, bot_id=bot_id, chat_id=chat_id, message_id=message_id, asks_for_prompt=True)


def same(job: GenerationJob, *, key: str) -> Wish:
    """As the job was asked for, with a seed of its own: the same one would give the same picture."""
    return Wish(prompt=job.prompt, key=key, preset=job.preset, negative_prompt=job.negative_prompt)


def remix_of(job: GenerationJob, *, prompt: str, key: str) -> Wish:
    """Another prompt for the same seed, so that only what was changed changes."""
    return replace(same(job, key=key), prompt=prompt, seed=job.seed, remixed_from=job)
