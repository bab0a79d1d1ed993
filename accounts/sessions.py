"""Django's sessions in the database, which are asked only for a key that Django could have made."""

from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore

MIN_LENGTH = 8  # as Django has it


class SessionStore(DatabaseSessionStore):
    """A cookie can hold anything, a NUL in octal included, which PostgreSQL takes for no text at all."""

    def _validate_session_key(self, key: str | None) -> bool:
        return key is not None and len(key) >= MIN_LENGTH and key.isascii() and key.isalnum()
