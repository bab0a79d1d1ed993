"""Refusals: what the bot does not do for a person, and why, in their language."""

from django.utils.functional import Promise


class Refusal(Exception):
    """A request that is refused; the message says why. `words` is the message of a class unless one is given."""

    words: Promise | str = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or str(self.words))
