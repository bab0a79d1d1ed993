"""How a video is named outside: `video_` and 32 hex digits, in the API and in addresses."""

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


def encrypted(text: str) -> str:
    """As it is stored. Empty stays empty: there is nothing to hide."""
    return MARK + _keys(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode()).decode() if text else ""


def decrypted(stored: str) -> str:
    """The secret; empty, and an error in the log, when it was encrypted with a key that is not known any more."""
    if not stored.startswith(MARK):
        return stored
    try:
        return _keys(tuple(settings.ENCRYPTION_KEYS)).decrypt(stored.removeprefix(MARK).encode()).decode()
    except InvalidToken:
        logger.error(
            "a stored key cannot be decrypted: SECRET_KEY or ENCRYPTION_KEYS has changed. Type the key in again."
        )
        return ""


class SecretField(models.TextField):
    """Text that is encrypted in the database and plain in Python. It cannot be searched for."""

    def from_db_value(self, value: str | None, *_: object) -> str | None:
        return None if value is None else decrypted(value)

    def get_prep_value(self, value: Any) -> Any:
        text = super().get_prep_value(value)
        return text if text is None or text.startswith(MARK) else encrypted(text)


@lru_cache(maxsize=8)
def _keys(secrets: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(base64.urlsafe_b64encode(_derived(secret))) for secret in secrets])


def _derived(secret: str) -> bytes:
    """32 bytes for this purpose alone."""
    return HKDF(SHA256(), length=32, salt=None, info=b"videoplatform stored secrets").derive(secret.encode())


# Secrets at rest: what a backup or a look into the table shows of them is of no use without the key.
#
# The key is derived from ENCRYPTION_KEYS, or from SECRET_KEY where that is not set. The first one encrypts, all of them
# decrypt, so that a key is changed by putting the new one in front.
#


PATTERN = "video_[0-9a-f]{32}"


def of(job_id: uuid.UUID) -> str:
    """The public id of a job."""
    return f"video_{job_id.hex}"


def parse(text: str) -> uuid.UUID | None:
    """The job's id, or None for what is no public id."""
    return uuid.UUID(text.removeprefix("video_")) if re.fullmatch(PATTERN, text) else None
