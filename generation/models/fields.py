"""Secrets that are encrypted at rest, and the public ids of videos."""

import base64
import logging
import re
import uuid
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db import models

logger = logging.getLogger(__name__)

MARK = "fernet:"
# A video outside: in the API and in addresses.
PUBLIC_ID = "video_[0-9a-f]{32}"


def public_id(job_id: uuid.UUID) -> str:
    """Name a job outside: `video_` and 32 hex digits."""
    return f"video_{job_id.hex}"


def job_id(text: str) -> uuid.UUID | None:
    """Read a public id; None for any other text."""
    return uuid.UUID(text.removeprefix("video_")) if re.fullmatch(PUBLIC_ID, text) else None


class SecretField(models.TextField):
    """Text that is encrypted in the database and plain in Python. It cannot be searched for.

    A backup of the table is of no use without the key, which is derived from ENCRYPTION_KEYS, or from SECRET_KEY where
    that is not set. The first one encrypts, all of them decrypt: a key is changed by putting the new one in front.
    """

    def from_db_value(self, value: str | None, *_: object) -> str | None:
        return None if value is None else decrypted(value)

    def get_prep_value(self, value: Any) -> Any:
        text = super().get_prep_value(value)
        if not text or text.startswith(MARK):
            return text
        return MARK + _keys(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode()).decode()


def decrypted(stored: str) -> str:
    """Decrypt a secret; empty, and an error in the log, when its key is not known any more."""
    if not stored.startswith(MARK):
        return stored
    try:
        return _keys(tuple(settings.ENCRYPTION_KEYS)).decrypt(stored.removeprefix(MARK).encode()).decode()
    except InvalidToken:
        logger.error(
            "a stored key cannot be decrypted: SECRET_KEY or ENCRYPTION_KEYS has changed. Type the key in again."
        )
        return ""


@lru_cache(maxsize=8)
def _keys(secrets: tuple[str, ...]) -> MultiFernet:
    """Derive 32 bytes from each secret, for this purpose alone."""
    purpose = b"videoplatform stored secrets"
    derived = [HKDF(SHA256(), length=32, salt=None, info=purpose).derive(s.encode()) for s in secrets]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived])
