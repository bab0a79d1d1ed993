"""/history: the last videos and what became of them."""

from django.utils.translation import gettext_lazy

from accounts.models import User
from generation.database import in_database
from generation.models import GenerationJob
from telegram_bot.requests import Request
from telegram_bot.routes import command
from telegram_bot.texts import answers

LENGTH = 5


@in_database
def last_jobs(person: User) -> list[GenerationJob]:
    return list(GenerationJob.objects.filter(user=person, deleted_at=None).order_by("-created_at")[:LENGTH])


@command("history", menu=gettext_lazy("Show your last videos"))
async def history(request: Request) -> None:
    await request.reply(answers.history(await last_jobs(request.person)))
