"""Server-sent events as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import json
import re
from datetime import datetime

from generation.api_serializers import video_json
from generation.models import GenerationJob

MEDIA_TYPE = "text/event-stream"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# How long a browser waits before it connects again.
RETRY = b"retry: 2000\n\n"
HEARTBEAT = b": still here\n\n"


def frame(event: str, data: str, *, at: datetime | None = None) -> bytes:
    """One server-sent event. `at` becomes its id, so that a client that comes back says how much it saw."""
    lines = [f"event: {event}"]
    if at is not None:
        lines.append(f"id: {int(at.timestamp() * 1000)}")
    lines += [f"data: {line}" for line in re.split(r"\r\n|\r|\n", data)]
    return ("\n".join(lines) + "\n\n").encode()


def video_frame(job: GenerationJob) -> bytes:
    """How a video stands, as the API's stream says it."""
    body = video_json(job)
    event = f"video.{body['status']}" if not job.is_live else "video.updated"
    return frame(event, json.dumps(body, ensure_ascii=False))
