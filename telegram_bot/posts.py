"""Which of the bot's messages is about which job. ORM code: called from within `in_database`."""

from generation.models import GenerationJob
from telegram_bot.models import JobMessage, JobPost


def remember(
    *, job: GenerationJob, bot_id: int, chat_id: int, message_id: int, asks_for_prompt: bool = False
) -> None:
    JobPost.objects.get_or_create(
        bot_id=bot_id,
        chat_id=chat_id,
        message_id=message_id,
        defaults={"job": job, "asks_for_prompt": asks_for_prompt},
    )


def find(*, bot_id: int, chat_id: int, message_id: int) -> JobPost | None:
    """What a message is about: one of the bot's, or the one by which somebody asked for a video."""
    post = JobPost.objects.filter(bot_id=bot_id, chat_id=chat_id, message_id=message_id)
    if found := post.filter(job__deleted_at=None).select_related("job__preset").first():
        return found
    return last_in(bot_id=bot_id, chat_id=chat_id, reply_to=message_id)


def last_in(*, bot_id: int, chat_id: int, **asked: int) -> JobPost | None:
    """The newest job that was asked for in a chat; `asked` narrows it down to fields of JobMessage."""
    rows = JobMessage.objects.filter(bot_id=bot_id, chat_id=chat_id, job__deleted_at=None, **asked)
    row = rows.select_related("job__preset").order_by("-id").first()
    return JobPost(job=row.job, bot_id=bot_id, chat_id=chat_id, message_id=0) if row else None
