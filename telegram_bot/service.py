"""The bot process: everything that talks to Telegram, behind one rate limiter, in one instance."""

import asyncio
import hashlib
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from django.conf import settings
from telegram.error import InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database, listen_parameters
from telegram_bot import links, refunds, wakeup
from telegram_bot.receiving import routes, updates
from telegram_bot.receiving.app import Dispatcher
from telegram_bot.receiving.updates import poll_for_ever
from telegram_bot.receiving.worker import Worker
from telegram_bot.sending import notices, retrying
from telegram_bot.sending.client import BotClient, traffic, wait_asked_for
from telegram_bot.sending.delivery import Deliveries
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.task_group import Crew

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CHECK_SECONDS = 5.0


@asynccontextmanager
async def only_instance(bot_id: int) -> AsyncIterator[psycopg.AsyncConnection]:
    """Wait to be the only one; yields the connection that holds the lock, which the server frees when it is lost."""
    connection = await _lock(_key(bot_id))
    try:
        yield connection
    finally:
        await connection.close()


async def watch(connection: psycopg.AsyncConnection) -> None:
    """Runs while the lock is held.

    Raises:
        psycopg.OperationalError: the connection is gone, and the lock with it.
    """
    while True:
        # Nobody notifies this connection, but waiting on its socket hears at once when the server closes it.
        async for _ in connection.notifies(timeout=CHECK_SECONDS):
            pass
        await connection.execute("SELECT 1")


async def _lock(key: int) -> psycopg.AsyncConnection:
    waiting = False
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(**listen_parameters(), autocommit=True)
        except psycopg.OperationalError as error:
            logger.warning("PostgreSQL is not there, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        try:
            # Tried again and again rather than waited for in the server, where the statement would hold back vacuum.
            while not await _try(connection, key):
                if not waiting:
                    logger.info("another instance of this bot is at work; standing by")
                    waiting = True
                await asyncio.sleep(RETRY_SECONDS)
            return connection
        except psycopg.OperationalError as error:
            logger.warning("PostgreSQL went away, trying again: %s", error)
            await connection.close()
            await asyncio.sleep(RETRY_SECONDS)
        except BaseException:
            await connection.close()
            raise


async def _try(connection: psycopg.AsyncConnection, key: int) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [key])
    row = await cursor.fetchone()
    return bool(row and row[0])


def _key(bot_id: int) -> int:
    """64 bits for this bot that nobody else is likely to lock."""
    return int.from_bytes(hashlib.sha256(f"telegram_bot:{bot_id}".encode()).digest()[:8], signed=True)


# One bot process at a time for each bot: whoever holds an advisory lock of PostgreSQL works, the others stand by.


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
    for pause in retrying.delays(longest=30.0):
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
    called = {wakeup.INBOX: worker.wake, wakeup.NOTICES: notices_called, wakeup.REFUNDS: refunds_called}
    grace = 0.0
    try:
        crew.loop(watch(lock))
        crew.loop(_introduce(client))
        crew.loop(traffic.flush_for_ever())
        if not settings.TELEGRAM_WEBHOOK_URL:
            crew.loop(poll_for_ever(client, bot_id, worker))
        crew.loop(wakeup.listen_for_ever(called))
        crew.loop(worker.pick_up_for_ever(bot_id))
        crew.loop(notices.send_for_ever(client, bot_id, notices_called))
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
    for pause in retrying.delays():
        try:
            await _settle_how_updates_come(client)
            await remember_bot(bot_id=client.id, username=client.username)
            for language, theirs in routes.languages():
                await client.set_my_commands(routes.menu(language), language_code=theirs)
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
        secret_token=updates.secret(),
        allowed_updates=routes.kinds_of_updates(),
    )
    logger.info("Telegram brings updates to %s", settings.TELEGRAM_WEBHOOK_URL)


async def _hang_up(client: BotClient) -> None:
    try:
        async with asyncio.timeout(GOODBYE_SECONDS):
            await client.shutdown()
    except TimeoutError:
        logger.warning("connections to Telegram were still open and are cut off")
