"""What streams read from the database: in a thread, with no connection kept while they wait."""

import asyncio
import importlib
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth import get_user
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.db.models import Q

from accounts.models import User
from generation.api_auth import key_of_header
from generation.api_serializers import with_what_is_shown
from generation.events import JobEvent
from generation.models import GenerationJob
from generation.sse.wire import video_frame

T = TypeVar("T")

# How many jobs a stream begins with at most.
SNAPSHOT_JOBS = 24

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sse")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a function that uses the ORM; its connection is given back before this returns."""

    def run() -> T:
        try:
            return function(*args)
        finally:
            connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(_threads, run)


def user_of_session(request: ASGIRequest) -> User | None:
    """Who is signed in: the same check as AuthenticationMiddleware makes, the session being read afresh."""
    store = importlib.import_module(settings.SESSION_ENGINE).SessionStore
    request.session = store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    user = get_user(request)
    return user if isinstance(user, User) and user.is_active else None


def owner_of_video(header: bytes, job: uuid.UUID) -> int | None:
    """The owner of the key in this Authorization header, when the video is theirs too."""
    key = key_of_header(header)
    if key is None or not GenerationJob.objects.filter(pk=job, user=key.user_id, deleted_at=None).exists():
        return None
    return key.user_id


def recent_events(user: int, since: datetime) -> list[JobEvent]:
    """The state of every live job of the user and of what ended since then, as events."""
    jobs = GenerationJob.objects.filter(user=user, deleted_at=None)
    recent = jobs.filter(Q(finished_at=None) | Q(finished_at__gte=since)).order_by("-created_at")[
        :SNAPSHOT_JOBS
    ]
    return [_as_event(job) for job in recent]


def frame_of_video(job: uuid.UUID, user: int) -> tuple[JobEvent, bytes, bool] | None:
    """How it stands, the same as the API's stream says it, and whether that is the last; None when it was deleted."""
    row = with_what_is_shown(GenerationJob.objects.filter(pk=job, user=user, deleted_at=None)).first()
    return None if row is None else (_as_event(row), video_frame(row), not row.is_live)


def _as_event(job: GenerationJob) -> JobEvent:
    return JobEvent(
        job=job.id.hex, user=job.user_id, state=job.state, step=job.step, steps=job.num_inference_steps
    )
