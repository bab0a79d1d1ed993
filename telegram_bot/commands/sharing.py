"""Share: a link by which anybody may watch the video, until it is taken back."""

from generation import sharing
from generation.database import in_database
from generation.models import GenerationJob
from telegram_bot.commands.again import own_job
from telegram_bot.requests import Press
from telegram_bot.routes import button
from telegram_bot.texts import answers, buttons


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
    await press.reply(answers.shared(job.prompt, address=address), reply_markup=buttons.of_share(job))


@button("unshare")
async def unshare(press: Press) -> None:
    """The link works no more; its message says so."""
    job = await own_job(press.account, press.argument)
    await revoke(job)
    await press.show(answers.not_shared(job.prompt))
