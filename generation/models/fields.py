"""Secrets that are encrypted at rest, and the public ids of videos."""

import re
import uuid
from typing import Any

from django.db import models

from accounts.models.ciphers import decrypted, encrypted

# A video outside: in the API and in addresses.
PUBLIC_ID = "video_[0-9a-f]{32}"


def public_id(job_id: uuid.UUID) -> str:
    """Name a job outside: `video_` and 32 hex digits."""
    return f"video_{job_id.hex}"


def job_id(text: str) -> uuid.UUID | None:
    """Read a public id; None for any other text."""
    return uuid.UUID(text.removeprefix("video_")) if re.fullmatch(PUBLIC_ID, text) else None


class SecretField(models.TextField):
    """Text that is encrypted in the database and plain in Python. It cannot be searched for."""

    def from_db_value(self, value: str | None, *_: object) -> str | None:
        return None if value is None else decrypted(value)

    def get_prep_value(self, value: Any) -> Any:
        text = super().get_prep_value(value)
        return text and encrypted(text)
