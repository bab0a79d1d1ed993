"""Secrets that the service has to read again, encrypted at rest: keys of nodes, secrets of second steps.

A backup is of no use without the key, which is derived from ENCRYPTION_KEYS, or from SECRET_KEY where that is not set.
The first one encrypts, all of them decrypt: a key is changed by putting the new one in front.
"""

import base64
import logging
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

logger = logging.getLogger(__name__)

MARK = "fernet:"


def encrypted(text: str) -> str:
    """Encrypt a secret, unless it is empty or encrypted already."""
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
