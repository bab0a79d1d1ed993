"""The audit log of the staff, as a list and on the pages of the rows it is about."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import admin
from django.db.models import Model, Q
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import display

from accounts.admin.base import ReadOnlyAdmin, bullets, link, once_a_row
from accounts.models import AuditEvent

LATEST = 10


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """The audit log: actor, operation, subject, time, address and reason."""

    list_display = ("at", "actor", "act", "subject", "reason", "credits", "address")
    list_select_related = ("actor",)
    list_filter = ("act", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("=actor__username", "subject_name", "=subject_id", "reason", "=address")
    fields = ("at", "actor", "address", "act", "subject", "reason", "credits", "was", "became")

    @display(description="About")
    def subject(self, entry: AuditEvent) -> SafeString | str:
        return _link_to_subject(entry)

    @display(description="Before")
    def was(self, entry: AuditEvent) -> str:
        return json.dumps(entry.before, ensure_ascii=False, sort_keys=True)

    @display(description="After")
    def became(self, entry: AuditEvent) -> str:
        return json.dumps(entry.after, ensure_ascii=False, sort_keys=True)


# By label of a model: queries for entries about other rows that belong on the page of one of its rows.
_related: dict[str, list[Callable[[Any], Q]]] = defaultdict(list)


def related_to(model: type[Model]) -> Callable[[Callable[[Any], Q]], Callable[[Any], Q]]:
    """Show entries about other rows on the pages of `model`; the function says which, for one row."""

    def add(which: Callable[[Any], Q]) -> Callable[[Any], Q]:
        _related[model._meta.label_lower].append(which)
        return which

    return add


@display(description="Audit log")
@once_a_row
def history_field(page: Any, subject: Model) -> SafeString | str:
    """Show the latest entries about the row or related to it, as a field of its page."""
    kind = subject._meta.label_lower
    own = Q(subject_kind=kind, subject_id=str(subject.pk))
    entries = AuditEvent.objects.filter(reduce(or_, (find(subject) for find in _related[kind]), own))
    return bullets(_line(entry, subject) for entry in entries.select_related("actor")[:LATEST])


def _line(entry: AuditEvent, page: Model) -> SafeString:
    """One entry in a line, with a link to its subject unless that is the row of the page."""
    elsewhere = entry.subject_kind != page._meta.label_lower or entry.subject_id != str(page.pk)
    parts = [
        f"{entry.at:%Y-%m-%d %H:%M}",
        entry.actor,
        entry.act,
        _link_to_subject(entry) if elsewhere else "",
        ", ".join(_changes(entry)),
        entry.reason,
    ]
    return format_html_join(" · ", "{}", ((part,) for part in parts if part))


def _changes(entry: AuditEvent) -> Iterator[str]:
    for name, value in entry.after.items():
        if name in entry.before:
            yield f"{name} {entry.before[name]} → {value}"
        elif value is not None:
            yield f"{name} {value}"


def _link_to_subject(entry: AuditEvent) -> SafeString | str:
    return link(entry.subject_kind.replace(".", "_"), entry.subject_id, entry.subject_name)
