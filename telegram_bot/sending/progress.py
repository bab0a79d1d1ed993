"""Status messages that follow their jobs: the place in line, then the steps.

All truth is in the rows, so that a restarted bot goes on where it was; events only say when to look.
"""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from time import monotonic
from weakref import WeakValueDictionary

from aiolimiter import AsyncLimiter
from django.utils import translation
from telegram import InlineKeyboardMarkup
from telegram.error import BadRequest, Forbidden, InvalidToken, TelegramError

from generation.database import DATABASE_AWAY, in_database
from generation.jobs import catalog
from generation.jobs.events import hub
from generation.models import GenerationJob
from generation.web.presenters import cards
from telegram_bot import language
from telegram_bot.models import JobMessage
from telegram_bot.sending.client import BotClient, is_unmodified, wait_asked_for
from telegram_bot.task_group import TaskGroup
from telegram_bot.texts import jobs as texts

logger = logging.getLogger(__name__)

EDIT_SECONDS = 1.5
# Telegram allows 20 messages a minute in a group, and the video is one of them.
GROUP_EDIT_SECONDS = 6.0
# Of the 30 requests a second that Telegram allows, so that answers never wait behind edits.
EDITS_PER_SECOND = 10
LINE_MOVES_SECONDS = 5.0
FOLLOWED_IN_LINE = 100


@dataclass(frozen=True)
class Status:
    """The content of a status message. Its buttons change only when its text does."""

    text: str
    buttons: InlineKeyboardMarkup | None


def status_of(job: GenerationJob) -> Status:
    """The status of a live job now, in the active language. Reads the database."""
    expected = catalog.expected_seconds(job.preset)
    [card] = cards([job], expected={job.preset_id: expected})
    return Status(texts.generating(card, expected_seconds=expected), texts.of_job(job))


@in_database
def message_of(job_id: uuid.UUID) -> tuple[JobMessage, Status] | None:
    """The row of a job and what its message should show; None when there is no message, or the job has ended."""
    rows = JobMessage.objects.select_related("job__preset", "job__user")
    row = rows.filter(job=job_id, state=JobMessage.State.PENDING).first()
    if row is None or row.status_message_id is None or not row.job.is_live:
        return None
    with translation.override(language.language_for(row.job.user)):
        return row, status_of(row.job)


@in_database
def update_row(row: JobMessage, **values: object) -> None:
    JobMessage.objects.filter(pk=row.pk).update(**values)


@in_database
def jobs_being_made(bot_id: int, *, only_queued: bool = False) -> list[tuple[uuid.UUID, int]]:
    """Jobs and chats whose status message may have to change."""
    pending = JobMessage.objects.filter(bot_id=bot_id, state=JobMessage.State.PENDING)
    rows = pending.filter(status_message_id__isnull=False, job__finished_at=None)
    if only_queued:
        rows = rows.filter(job__state=GenerationJob.State.QUEUED)
        rows = rows.order_by("job__created_at")[:FOLLOWED_IN_LINE]
    return list(rows.values_list("job_id", "chat_id"))


class LiveStatus:
    """Edits status messages: each at most once in EDIT_SECONDS, all of them together slower than answers are sent."""

    def __init__(self, *, bot: BotClient, tasks: TaskGroup) -> None:
        self._bot, self._tasks = bot, tasks
        self._limit = AsyncLimiter(EDITS_PER_SECOND, 1)
        self._chats: dict[uuid.UUID, int] = {}
        self._edited_at: dict[uuid.UUID, float] = {}
        self._changed: set[uuid.UUID] = set()
        self._editing: set[uuid.UUID] = set()
        self._locks: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()
        self._line_moved = asyncio.Event()

    def lock(self, job_id: uuid.UUID) -> asyncio.Lock:
        """The lock under which the job is written about, so that no late edit follows its result."""
        return self._locks.setdefault(job_id, asyncio.Lock())

    def track(self, *, job_id: uuid.UUID, chat_id: int) -> None:
        """Keep a status message up to date from now on."""
        self._chats[job_id] = chat_id
        self._edited_at[job_id] = monotonic()
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
            self._chats = dict(await jobs_being_made(self._bot.id))
        except DATABASE_AWAY as error:
            logger.warning("cannot look at the jobs now: %s", error)
        for job_id in list(self._chats):
            self._touch(job_id)

    def _touch(self, job_id: uuid.UUID) -> None:
        if job_id not in self._chats:
            return
        self._changed.add(job_id)
        if job_id not in self._editing:
            self._editing.add(job_id)
            self._tasks.loop(self._edit(job_id))

    async def _edit(self, job_id: uuid.UUID) -> None:
        try:
            while job_id in self._changed:
                await asyncio.sleep(self._pause(job_id))
                self._changed.discard(job_id)
                try:
                    await self._bring_up_to_date(job_id)
                except DATABASE_AWAY as error:
                    logger.warning("cannot look at job %s now: %s", job_id.hex, error)
        except InvalidToken:
            raise
        except Exception:
            # One message that cannot be kept up to date must not stop the bot: its result comes all the same.
            logger.exception("the status message of job %s is left alone", job_id.hex)
            self._forget(job_id)
        finally:
            self._editing.discard(job_id)

    def _pause(self, job_id: uuid.UUID) -> float:
        interval = GROUP_EDIT_SECONDS if self._chats.get(job_id, 0) < 0 else EDIT_SECONDS
        return max(0.0, self._edited_at.get(job_id, 0.0) + interval - monotonic())

    async def _bring_up_to_date(self, job_id: uuid.UUID) -> None:
        async with self.lock(job_id):
            if (found := await message_of(job_id)) is None:
                self._forget(job_id)
                return
            row, status = found
            if status.text != row.last_text:
                async with self._limit:
                    await self._show(row, status)

    async def _show(self, row: JobMessage, status: Status) -> None:
        self._edited_at[row.job_id] = monotonic()
        try:
            await self._bot.edit_message_text(
                status.text,
                chat_id=row.chat_id,
                message_id=row.status_message_id,
                reply_markup=status.buttons,
            )
        except InvalidToken:
            raise
        except (BadRequest, Forbidden) as error:
            if not is_unmodified(error):
                logger.info("the status message of job %s cannot be edited: %s", row.job_id.hex, error)
                if isinstance(error, BadRequest):
                    # Deleted by the person, or too old: the result will come as a new message anyway.
                    await update_row(row, status_message_id=None)
                self._forget(row.job_id)
                return
        except TelegramError as error:
            logger.info("the status message of job %s stays as it is for now: %s", row.job_id.hex, error)
            self._edited_at[row.job_id] += wait_asked_for(error) or EDIT_SECONDS
            self._changed.add(row.job_id)
            return
        await update_row(row, last_text=status.text)

    def _forget(self, job_id: uuid.UUID) -> None:
        self._chats.pop(job_id, None)
        self._edited_at.pop(job_id, None)
        self._changed.discard(job_id)
