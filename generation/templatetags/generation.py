"""Template helpers for clips, times and credits, and the front page's clips (`make clips` makes them)."""

import functools
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
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

from accounts.ledger import HistoryLine
from generation.errors import cancel_terms, reason_of
from generation.models import GenerationJob

register = template.Library()
register.simple_tag(cancel_terms)


@register.filter
def duration(seconds: float | None) -> str:
    """Write seconds in the largest unit that is still precise: `12 s`, `2 min`, `3 h`."""
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
    """Write a moment in few letters: `just now`, `4 min ago`, `22 Nov`."""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < 60:
        return _("just now")
    if seconds < 24 * 3600:
        return _("%(time)s ago") % {"time": duration(max(seconds, 100))}
    return date_format(moment, "MONTH_DAY_FORMAT")


@register.filter
def milliseconds(value: int | None) -> str:
    """Write milliseconds as seconds with one digit: `28.3 s`."""
    return "" if value is None else _("%(number)s s") % {"number": number_format(value / 1000, 1)}


@register.filter
def price(amount: int) -> str:
    """Write a price: `50 credits`, `1 credit`, `free`."""
    if not amount:
        return _("free")
    return ngettext("%(amount)s credit", "%(amount)s credits", amount) % {"amount": intcomma(amount)}


@register.filter
def steps(number: int) -> str:
    """Write a number of denoising steps: `20 steps`, `1 step`."""
    return ngettext("%(number)d step", "%(number)d steps", number) % {"number": number}


@register.filter
def frames(number: int) -> str:
    """Write a number of frames: `16 frames`, `1 frame`."""
    return ngettext("%(number)d frame", "%(number)d frames", number) % {"number": number}


@register.filter
def signed(amount: int) -> str:
    """Write a change of balance, with a true minus sign."""
    return f"{'+' if amount > 0 else '−' if amount else ''}{intcomma(abs(amount))}"


@register.filter
def with_jobs(lines: Iterable[HistoryLine], owner: Model) -> list[tuple[HistoryLine, GenerationJob | None]]:
    """Pair lines of the ledger with the owner's jobs they are about, in one query."""
    lines = list(lines)
    references = {line.reference for line in lines if line.reference}
    jobs = GenerationJob.objects.filter(user_id=owner.pk).in_bulk(references)
    return [(line, jobs.get(line.reference) if line.reference else None) for line in lines]


@register.filter
def failure(job: GenerationJob) -> str:
    """Say what happened and what it cost, in whole sentences."""
    return reason_of(job.error_message, job.cancel_fee)


@register.simple_tag
def front_clips() -> list[dict[str, Any]]:
    """List the front page's clips with the addresses of video and poster; none while `make clips` never ran."""
    return [
        row | {"video": static(f"clips/{row['name']}.mp4"), "poster": static(f"clips/{row['name']}.jpg")}
        for row in _front_clips()
    ]


@functools.cache
def _front_clips() -> list[dict[str, Any]]:
    path = finders.find("clips/clips.json")
    return json.loads(Path(path).read_text("utf-8")) if path else []
