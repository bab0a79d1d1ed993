"""The bot process: everything that talks to Telegram, behind one rate limiter, in one instance."""

import asyncio
import logging
import signal

import psycopg
from django.conf import settings
from telegram.error import InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from telegram_bot import backoff, bell, links, menus, notice_delivery, refunds, routes, webhook
from telegram_bot.client import BotClient, wait_asked_for
from telegram_bot.crew import Crew
from telegram_bot.delivery import Deliveries
from telegram_bot.dispatcher import Dispatcher
from telegram_bot.instance import only_instance, watch
from telegram_bot.live import LiveStatus
from telegram_bot.polling import poll_for_ever
from telegram_bot.traffic import traffic
from telegram_bot.worker import Worker

logger = logging.getLogger(__name__)

remember_bot = in_database(links.remember_bot)

# Sends that are under way when the process is told to stop may take so long.
GRACE_SECONDS = 5.0
GOODBYE_SECONDS = 2.0


async def run(client: BotClient, bot_id: int) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        InvalidToken: Telegram does not know the token.
    """
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    work = asyncio.create_task(_connect_and_serve(client, bot_id))
    stop = asyncio.create_task(told_to_stop.wait())
    try:
        await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            logger.info("stopping: what is being sent gets %.0f s", GRACE_SECONDS)
    finally:
        stop.cancel()
        work.cancel()
        [outcome] = await asyncio.gather(work, return_exceptions=True)
        await _hang_up(client)
    if isinstance(outcome, Exception):
        raise outcome
    logger.info("the bot has stopped")


async def _connect_and_serve(client: BotClient, bot_id: int) -> None:
    await _connect(client)
    logger.info("connected as @%s", client.username)
    while True:
        async with only_instance(bot_id) as connection:
            try:
                await _serve(client, bot_id, connection)
            except psycopg.OperationalError as error:
                # With the connection the lock is gone, and somebody else may hold it: begin again.
                logger.warning("PostgreSQL went away, starting over: %s", error)


async def _connect(client: BotClient) -> None:
    """Ask Telegram who we are, until it answers."""
    for pause in backoff.delays(longest=30.0):
        try:
            return await client.initialize()
        except InvalidToken:
            raise
        except TelegramError as error:
            where = settings.TELEGRAM_API_BASE_URL
            logger.warning("Telegram cannot be reached at %s, trying again: %s", where, error)
            await asyncio.sleep(wait_asked_for(error) or pause)
    raise AssertionError("delays have no end")


async def _serve(client: BotClient, bot_id: int, lock: psycopg.AsyncConnection) -> None:
    """All loops, until one fails or the task is cancelled; then what is under way gets a moment."""
    crew = Crew()
    live = LiveStatus(bot=client, crew=crew)
    dispatcher = Dispatcher(bot=client, bot_id=bot_id, live=live)
    worker = Worker(bot=client, crew=crew, handle=dispatcher.handle)
    notices_called, refunds_called = asyncio.Event(), asyncio.Event()
    called = {bell.INBOX: worker.wake, bell.NOTICES: notices_called, bell.REFUNDS: refunds_called}
    grace = 0.0
    try:
        crew.loop(watch(lock))
        crew.loop(_introduce(client))
        crew.loop(traffic.flush_for_ever())
        if not settings.TELEGRAM_WEBHOOK_URL:
            crew.loop(poll_for_ever(client, bot_id, worker))
        crew.loop(bell.listen_for_ever(called))
        crew.loop(worker.pick_up_for_ever(bot_id))
        crew.loop(notice_delivery.send_for_ever(client, bot_id, notices_called))
        crew.loop(refunds.ask_for_ever(client, bot_id, refunds_called))
        crew.loop(worker.prune_for_ever())
        crew.loop(live.follow_events())
        crew.loop(live.follow_the_line())
        crew.loop(Deliveries(bot=client, crew=crew, live=live).run())
        logger.info("the bot is at work")
        await crew.first_failure()
    except asyncio.CancelledError:
        grace = GRACE_SECONDS
        raise
    finally:
        await crew.stop(grace=grace)
        await traffic.flush()


async def _introduce(client: BotClient) -> None:
    """How updates come, what the bot is called on the site, and the menu that people see."""
    for pause in backoff.delays():
        try:
            await _settle_how_updates_come(client)
            await remember_bot(bot_id=client.id, username=client.username)
            for language, theirs in menus.languages():
                await client.set_my_commands(menus.menu(language), language_code=theirs)
            return
        except InvalidToken:
            raise
        except (TelegramError, *DATABASE_AWAY) as error:
            logger.warning("the webhook or the list of commands could not be set, trying again: %s", error)
            await asyncio.sleep(wait_asked_for(error) or pause)


async def _settle_how_updates_come(client: BotClient) -> None:
    """Polling needs the webhook gone."""
    if not settings.TELEGRAM_WEBHOOK_URL:
        await client.delete_webhook()
        return
    await client.set_webhook(
        settings.TELEGRAM_WEBHOOK_URL,
        secret_token=webhook.secret(),
        allowed_updates=routes.kinds_of_updates(),
    )
    logger.info("Telegram brings updates to %s", settings.TELEGRAM_WEBHOOK_URL)


async def _hang_up(client: BotClient) -> None:
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await client.shutdown()
    except TimeoutError:
        logger.warning("connections to Telegram were still open and are cut off")
