"""Status messages that follow their jobs: the place in line, then the steps.

All truth is in the rows, so that a restarted bot goes on where it was; events only say when to look.
"""

import asyncio
import logging
import uuid
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

from aiolimiter import AsyncLimiter
from django.utils import translation
from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from generation.jobs import catalog
from generation.jobs.events import hub
from generation.models import GenerationJob
from generation.web.presenters import cards
from telegram_bot import users
from telegram_bot.models import JobMessage
from telegram_bot.sending import outbox
from telegram_bot.sending.client import BotClient, is_gone, is_unmodified, wait_asked_for
from telegram_bot.texts import jobs as texts

logger = logging.getLogger(__name__)

EDIT_SECONDS = 1.5
# Telegram allows 20 messages a minute in a group, and the video is one of them.
GROUP_EDIT_SECONDS = 6.0
# Of the 30 requests a second that Telegram allows, so that answers never wait behind edits.
EDITS_PER_SECOND = 10
LINE_MOVES_SECONDS = 5.0
FOLLOWED_IN_LINE = 100

update = in_database(outbox.update)


def status_of(job: GenerationJob) -> dict[str, Any]:
    """Make the status message of a live job, in the active language. Its buttons change only when its text does.

    Reads the database. The result is for send_message and edit_message_text.
    """
    expected = catalog.expected_seconds_of([job.preset])[job.preset_id]
    [card] = cards([job], expected={job.preset_id: expected})
    return {"text": texts.generating(card, expected_seconds=expected), "reply_markup": texts.of_job(job)}


@in_database
def message_of(job_id: uuid.UUID) -> tuple[JobMessage, dict[str, Any]] | None:
    """Find the row and the status of a job; None when there is no message, or the job has ended."""
    rows = JobMessage.objects.select_related("job__preset", "job__user__telegram_account")
    row = rows.filter(job=job_id, state=JobMessage.State.PENDING).first()
    if row is None or row.status_message_id is None or not row.job.is_live:
        return None
    with translation.override(users.language_for(row.job.user)):
        return row, status_of(row.job)


@in_database
def jobs_being_made(bot_id: int, *, only_queued: bool = False) -> list[tuple[uuid.UUID, int]]:
    """Find the jobs and chats whose status message may have to change."""
    pending = JobMessage.objects.filter(bot_id=bot_id, state=JobMessage.State.PENDING)
    rows = pending.filter(status_message_id__isnull=False, job__finished_at=None)
    if only_queued:
        rows = rows.filter(job__state=GenerationJob.State.QUEUED)
        rows = rows.order_by("job__created_at")[:FOLLOWED_IN_LINE]
    return list(rows.values_list("job_id", "chat_id"))


@dataclass
class Tracked:
    """A status message that is kept up to date. edited_at: by the monotonic clock."""

    chat_id: int
    edited_at: float = field(default_factory=monotonic)
    changed: bool = False
    is_edited: bool = False

    @property
    def pause(self) -> float:
        """Seconds until it may be edited again."""
        interval = GROUP_EDIT_SECONDS if self.chat_id < 0 else EDIT_SECONDS
        return max(0.0, self.edited_at + interval - monotonic())


class LiveStatus:
    """The status messages: each is edited once in EDIT_SECONDS at most, all together slower than answers are sent."""

    def __init__(self, *, bot: BotClient, tasks: asyncio.TaskGroup) -> None:
        self._bot, self._tasks = bot, tasks
        self._limit = AsyncLimiter(EDITS_PER_SECOND, 1)
        self._tracked: dict[uuid.UUID, Tracked] = {}
        self._locks: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()
        self._line_moved = asyncio.Event()

    def lock(self, job_id: uuid.UUID) -> asyncio.Lock:
        """Return the lock under which the job is written about, so that no late edit follows its result."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    def track(self, *, job_id: uuid.UUID, chat_id: int) -> None:
        """Keep a status message up to date from now on."""
        self._tracked[job_id] = Tracked(chat_id)
        self._touch(job_id)

    async def follow_events(self) -> None:
        """Look again at every job that changes."""
        with hub.subscribe() as events:
            await self._look_at_all()
            while True:
                event = await events.get()
                if event is None:  # something may have been missed
                    await self._look_at_all()
                    continue
                if event.state != GenerationJob.State.QUEUED:
                    self._line_moved.set()
                self._touch(uuid.UUID(event.job))

    async def follow_the_line(self) -> None:
        """Look at queued jobs when one leaves the line: those behind it move up, and no event says so."""
        while True:
            await self._line_moved.wait()
            self._line_moved.clear()
            try:
                for job_id, _ in await jobs_being_made(self._bot.id, only_queued=True):
                    self._touch(job_id)
            except DATABASE_AWAY as error:
                logger.warning("cannot look at the line now: %s", error)
            await asyncio.sleep(LINE_MOVES_SECONDS)

    async def _look_at_all(self) -> None:
        try:
            for job_id, chat_id in await jobs_being_made(self._bot.id):
                self._tracked.setdefault(job_id, Tracked(chat_id, edited_at=0.0))
        except DATABASE_AWAY as error:
            logger.warning("cannot look at the jobs now: %s", error)
        for job_id in list(self._tracked):
            self._touch(job_id)

    def _touch(self, job_id: uuid.UUID) -> None:
        if (tracked := self._tracked.get(job_id)) is None:
            return
        tracked.changed = True
        if not tracked.is_edited:
            tracked.is_edited = True
            self._tasks.create_task(self._edit(job_id, tracked))

    async def _edit(self, job_id: uuid.UUID, tracked: Tracked) -> None:
        try:
            while tracked.changed:
                await asyncio.sleep(tracked.pause)
                tracked.changed = False
                try:
                    async with self.lock(job_id):
                        if (found := await message_of(job_id)) is None:
                            self._tracked.pop(job_id, None)
                        else:
                            await self._show(*found, tracked)
                except DATABASE_AWAY as error:
                    logger.warning("cannot look at job %s now: %s", job_id.hex, error)
        except InvalidToken:
            raise
        except Exception:
            # One message that cannot be kept up to date must not stop the bot: its result comes all the same.
            logger.exception("the status message of job %s is left alone", job_id.hex)
            self._tracked.pop(job_id, None)
        finally:
            tracked.is_edited = False

    async def _show(self, row: JobMessage, status: dict[str, Any], tracked: Tracked) -> None:
        if status["text"] == row.last_text:
            return
        try:
            async with self._limit:
                tracked.edited_at = monotonic()
                await self._bot.edit_message_text(
                    chat_id=row.chat_id, message_id=row.status_message_id, **status
                )
        except InvalidToken:
            raise
        except (BadRequest, Forbidden) as error:
            if not is_unmodified(error):
                logger.info("the status message of job %s cannot be edited: %s", row.job_id.hex, error)
                if is_gone(error):
                    # The result will come as a new message anyway.
                    await update(row, status_message_id=None)
                self._tracked.pop(row.job_id, None)
                return
        except TelegramError as error:
            logger.info("the status message of job %s stays as it is for now: %s", row.job_id.hex, error)
            tracked.edited_at += wait_asked_for(error) or EDIT_SECONDS
            tracked.changed = True
            return
        await update(row, last_text=status["text"])
