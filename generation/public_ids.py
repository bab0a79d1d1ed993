"""How a video is named outside: `video_` and 32 hex digits, in the API and in addresses."""

import re
import uuid

PATTERN = "video_[0-9a-f]{32}"


def of(job_id: uuid.UUID) -> str:
    """The public id of a job."""
    return f"video_{job_id.hex}"


def parse(text: str) -> uuid.UUID | None:
    """The job's id, or None for what is no public id."""
    return uuid.UUID(text.removeprefix("video_")) if re.fullmatch(PATTERN, text) else None
