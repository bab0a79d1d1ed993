"""The clips that visitors see before they sign in: made by this service itself (`make clips`), kept with the code."""

import functools
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import template
from django.contrib.humanize.templatetags.humanize import intcomma
from django.contrib.staticfiles import finders
from django.db.models import Model
from django.templatetags.static import static
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from accounts.models import CreditTransaction
from generation.errors import NOTHING_DEDUCTED
from generation.models import GenerationJob

register = template.Library()


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in the largest unit that still says something: `12 s`, `2 min`, `3 h`."""
    if seconds is None:
        return ""
    if seconds < 100:
        return _("%(number)s s") % {"number": round(seconds)}
    minutes = round(seconds / 60)
    if minutes < 100:
        return _("%(number)s min") % {"number": minutes}
    return _("%(number)s h") % {"number": round(minutes / 60)}


@register.filter
def ago(moment: datetime) -> str:
    """When something happened, in few letters: `just now`, `4 min ago`, `22 Nov`."""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 60:
        return _("just now")
    if seconds < 24 * 3600:
        return _("%(time)s ago") % {"time": duration(max(seconds, 100))}
    return date_format(moment, "j M")


@register.filter
def milliseconds(value: int | None) -> str:
    """Milliseconds as seconds with one digit: `28.3 s`."""
    return "" if value is None else _("%(number)s s") % {"number": number_format(value / 1000, 1)}


@register.filter
def credit_words(amount: int) -> str:
    """A price: `50 credits`, `1 credit`, `free`."""
    if not amount:
        return _("free")
    return ngettext("%(amount)s credit", "%(amount)s credits", amount) % {"amount": intcomma(amount)}


@register.filter
def signed(amount: int) -> str:
    """A change of balance, with a true minus sign."""
    return f"+{amount:,}" if amount > 0 else f"−{-amount:,}" if amount else "0"


@register.filter
def jobs_of(entries: Iterable[CreditTransaction], owner: Model) -> dict[uuid.UUID, GenerationJob]:
    """The owner's jobs that ledger entries are about, by reference, in one query."""
    references = {entry.reference for entry in entries if entry.reference}
    return GenerationJob.objects.filter(user_id=owner.pk).in_bulk(references)


@register.filter
def of(mapping: dict[object, object], key: object) -> object:
    """The mapping's value for the key, or None."""
    return mapping.get(key)


@register.filter
def failure(job: GenerationJob) -> str:
    """What happened and that it cost nothing, in whole sentences."""
    happened = _(job.error_message.strip()) if job.error_message.strip() else ""
    if NOTHING_DEDUCTED in job.error_message:
        return happened
    return f"{happened}{'' if happened.endswith(('.', '!', '?')) else '.'} {_(NOTHING_DEDUCTED)}"


@register.filter
def plus(number: int | None, other: int | None) -> int:
    """The sum, what is missing being 0."""
    return (number or 0) + (other or 0)


# The words that templates need for clips, times and credits.


FOLDER = "clips"


@dataclass(frozen=True)
class FrontClip:
    """A clip and its poster as addresses; width and height in pixels."""

    prompt: str
    model: str
    video: str
    poster: str
    width: int
    height: int


@register.simple_tag
def front_clips() -> list[FrontClip]:
    """In the order of clips.json; none while nobody has made any."""
    return [
        FrontClip(
            prompt=row["prompt"],
            model=row["model"],
            video=static(f"{FOLDER}/{row['name']}.mp4"),
            poster=static(f"{FOLDER}/{row['name']}.jpg"),
            width=row["width"],
            height=row["height"],
        )
        for row in _list()
    ]


@functools.cache
def _list() -> list[dict[str, Any]]:
    path = finders.find(f"{FOLDER}/clips.json")
    if path is None:
        return []
    with open(path, encoding="utf-8") as file:  # noqa: PTH123  (finders speak of strings)
        rows: list[dict[str, Any]] = json.load(file)
    return rows
