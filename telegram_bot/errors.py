"""Refusals: what the bot does not do for a person, and why."""


class Refusal(Exception):
    """A request that is refused; the message says why, in plain text and in the person's language."""
