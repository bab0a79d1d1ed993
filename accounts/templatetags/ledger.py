"""Why credits moved, in the language of the page: the books are in English."""

from django import template
from django.utils.translation import gettext

register = template.Library()


@register.filter
def reason_words(reason: str) -> str:
    """Our own reasons translated, also `Video failed: <why>`; what staff wrote as it is."""
    happened, colon, why = reason.partition(": ")
    return f"{_known(happened)}: {_known(why)}" if colon and why else _known(reason)


def _known(words: str) -> str:
    return gettext(words) if words else ""
