"""One-time tokens for links: 192 random bits that need no quoting anywhere, of which only a SHA-256 is kept."""

import hashlib
import re
import secrets

# What Telegram lets stand behind `?start=`, and a button carry.
FORM = re.compile(r"[\w-]{32}", re.ASCII)


def new() -> tuple[str, str]:
    """A token and its digest."""
    token = secrets.token_urlsafe(24)
    return token, digest(token)


def digest(token: str) -> str:
    """What to look for in the table; of what is no token, something that is never there."""
    return hashlib.sha256(token.encode()).hexdigest() if FORM.fullmatch(token) else ""
