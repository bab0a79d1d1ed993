"""The bot process: everything that talks to Telegram, behind one rate limiter, in one instance."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from functools import partial
from typing import Any

import psycopg
from django.conf import settings
from django.utils import translation
from telegram.error import BadRequest, InvalidToken

from generation.database import (
    DATABASE_AWAY,
    TRY_LOCK,
    check_hearing,
    in_database,
    listen_parameters,
    lock_key,
)
from generation.outbox import Outbox
from telegram_bot import linking, links, wakeup
from telegram_bot.models import KnownBot
from telegram_bot.receiving import inbox, routes, updates
from telegram_bot.receiving.app import Dispatcher
from telegram_bot.sending import outbox
from telegram_bot.sending.client import BotClient, patiently, traffic
from telegram_bot.sending.delivery import Notices, Refunds, Results
from telegram_bot.sending.progress import LiveStatus
from telegram_bot.texts import accounts as texts

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CHECK_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
# Sends that are under way at SIGTERM may take so long.
GRACE_SECONDS = 5.0
GOODBYE_SECONDS = 2.0


async def run(client: BotClient) -> None:
    """Work until SIGTERM or SIGINT.

    Raises:
        InvalidToken: Telegram does not know the token.
    """
    work = asyncio.create_task(_connect_and_serve(client))

    def stop() -> None:
        if not work.cancelling():
            logger.info("stopping: what is being sent gets %.0f s", GRACE_SECONDS)
            work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    finally:
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await client.shutdown()
        except TimeoutError:
            logger.warning("connections to Telegram were still open and are cut off")
    logger.info("the bot has stopped")


async def _connect_and_serve(client: BotClient) -> None:
    """Work while this process is the only one of its bot: it holds an advisory lock, the others stand by."""
    await patiently(
        client.initialize, trouble=f"Telegram cannot be reached at {settings.TELEGRAM_API_BASE_URL}"
    )
    logger.info("connected as @%s", client.username)
    await asyncio.to_thread(check_hearing)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(**listen_parameters()) as connection:
                await _lock(connection, client.id)
                await _serve(client, connection)
        except psycopg.OperationalError as error:
            # With the connection the lock is gone, and another process may hold it: begin again.
            logger.warning("PostgreSQL is not there, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)


async def _lock(connection: psycopg.AsyncConnection, bot_id: int) -> None:
    """Try again and again: a statement that waits in the server would hold back vacuum."""
    key = lock_key(f"telegram_bot:{bot_id}")
    waiting = False
    while True:
        cursor = await connection.execute(TRY_LOCK, [key])
        if (await cursor.fetchone() or [False])[0]:
            return
        await connection.rollback()
        if not waiting:
            logger.info("another instance of this bot is at work; standing by")
            waiting = True
        await asyncio.sleep(RETRY_SECONDS)


async def _watch(connection: psycopg.AsyncConnection) -> None:
    """Run while the lock is held.

    Raises:
        psycopg.OperationalError: the connection is gone, and the lock with it.
    """
    while True:
        # Nothing notifies this connection, but waiting on its socket hears at once when the server closes it.
        async for _ in connection.notifies(timeout=CHECK_SECONDS):
            pass
        await connection.execute("SELECT 1")


async def _serve(client: BotClient, lock: psycopg.AsyncConnection) -> None:
    """Run until a loop fails or this is cancelled; then jobs, such as an upload, get a moment to come to their end."""
    jobs: set[asyncio.Task[None]] = set()
    wakeups = {wakeup.INBOX: asyncio.Event(), wakeup.OUTBOX: asyncio.Event()}

    def start_job(work: Coroutine[Any, Any, None]) -> None:
        job = tasks.create_task(work)
        jobs.add(job)
        job.add_done_callback(jobs.discard)

    try:
        async with asyncio.TaskGroup() as tasks:
            live = LiveStatus(bot=client, tasks=tasks)
            worker = inbox.Worker(
                bot=client, start=start_job, handle=Dispatcher(bot=client, live=live).handle
            )
            deliveries = Outbox(
                [Results(client, live), Notices(client), Refunds(client)],
                start=start_job,
                wakeup=wakeups[wakeup.OUTBOX],
                fatal=InvalidToken,
            )
            work = [
                _watch(lock),
                patiently(partial(_introduce, client), trouble="the webhook or the menu could not be set"),
                traffic.flush_for_ever(),
                wakeup.listen_for_ever(wakeups),
                worker.pick_up_for_ever(wakeups[wakeup.INBOX]),
                deliveries.run(),
                live.follow_events(),
                live.follow_the_line(),
                _prune_for_ever(),
            ]
            if not settings.TELEGRAM_WEBHOOK_URL:
                work.append(updates.poll_for_ever(client, worker))
            loops = [tasks.create_task(loop) for loop in work]
            logger.info("the bot is at work")
            try:
                await asyncio.wait(loops)
            except asyncio.CancelledError:
                for loop in loops:
                    # When one failed, the group has cancelled all. Cancelled again, a request would break off its own
                    # clean-up, and httpx would count its connection as in use for ever.
                    if not loop.cancelling():
                        loop.cancel()
                await asyncio.wait([*loops, *jobs], timeout=GRACE_SECONDS)
                raise
    except BaseExceptionGroup as failures:
        if (task := asyncio.current_task()) and task.cancelling():  # by a signal, which must not be lost
            raise asyncio.CancelledError from failures
        raise failures.exceptions[0] from None
    finally:
        await traffic.flush()


async def _introduce(client: BotClient) -> None:
    """Settle how updates come, store the bot's username for the site, and set the menu."""
    if settings.TELEGRAM_WEBHOOK_URL:
        await client.set_webhook(
            settings.TELEGRAM_WEBHOOK_URL,
            secret_token=updates.secret(),
            allowed_updates=routes.kinds_of_updates(),
        )
        logger.info("Telegram brings updates to %s", settings.TELEGRAM_WEBHOOK_URL)
    else:
        await client.delete_webhook()  # polling needs it gone
    await in_database(KnownBot.objects.update_or_create)(
        bot_id=client.id, defaults={"username": client.username}
    )
    for language, _ in settings.LANGUAGES:
        # Telegram shows the menu without a language to all others.
        code = None if language == settings.LANGUAGE_CODE else language
        await client.set_my_commands(routes.menu(language), language_code=code)
        await _describe(client, language, code)


async def _describe(client: BotClient, language: str, code: str | None) -> None:
    """Set what Telegram shows in the empty chat and on the bot's profile, unless its operator wrote something."""
    with translation.override(language):
        description, short = texts.description(), texts.short_description()
    try:
        if not (await client.get_my_description(code)).description:
            await client.set_my_description(description, language_code=code)
        if not (await client.get_my_short_description(code)).short_description:
            await client.set_my_short_description(short, language_code=code)
    except (BadRequest, InvalidToken) as error:
        # By InvalidToken a Bot API server of one's own says that it does not know the method.
        logger.warning("the bot's description could not be set: %s", error)


@in_database
def _prune() -> int:
    return inbox.prune() + outbox.prune() + linking.prune() + links.prune_logins()


async def _prune_for_ever() -> None:
    """Delete old rows once an hour."""
    while True:
        try:
            if pruned := await _prune():
                logger.info("deleted %d rows that are no longer needed", pruned)
        except DATABASE_AWAY as error:
            logger.warning("cannot delete old rows now: %s", error)
        await asyncio.sleep(PRUNE_SECONDS)
