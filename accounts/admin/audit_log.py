"""The audit log of the staff, as a list and on the pages of the rows it is about."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import display

from accounts.admin.base import ReadOnlyAdmin, bullets, link, once_a_row
from accounts.models import AuditEvent, SecurityEvent

LATEST = 10


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """The audit log: actor, operation, subject, time, address and reason."""

    list_display = ("at", "actor", "approved_by", "act", "subject", "reason", "credits", "address")
    list_select_related = ("actor", "approved_by")
    list_filter = ("act", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("=actor__username", "subject_name", "=subject_id", "reason", "=address")
    fields = ("at", "actor", "approved_by", "address", "act", "subject", "reason", "credits", "was", "became")

    @display(description="About")
    def subject(self, entry: AuditEvent) -> SafeString | str:
        return _link_to_subject(entry)

    @display(description="Before")
    def was(self, entry: AuditEvent) -> SafeString | str:
        return _values(entry.before)

    @display(description="After")
    def became(self, entry: AuditEvent) -> SafeString | str:
        return _values(entry.after)


@admin.register(SecurityEvent)
class SecurityEventAdmin(ReadOnlyAdmin):
    """The security log: sign-ins, failures, keys and passwords, with addresses."""

    list_display = ("at", "what", "user", "detail", "address", "agent")
    list_select_related = ("user",)
    list_filter = ("what", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("=user__username", "=address", "=detail")
    fields = list_display


def _values(values: dict[str, Any]) -> SafeString | str:
    return bullets(
        (f"{name.replace('_', ' ')}: {_in_words(value)}" for name, value in values.items()), empty="nothing"
    )


def _in_words(value: Any) -> str:
    """Write a value of JSON as people do."""
    if isinstance(value, list):
        return ", ".join(_in_words(each) for each in value) or "nothing"
    return (
        {True: "yes", False: "no", None: "empty"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


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
    return bullets((line(entry, subject) for entry in latest_about(subject)), empty="nothing yet")


def latest_about(subject: Model) -> "QuerySet[AuditEvent]":
    """Select the latest entries about the row or related to it."""
    kind = subject._meta.label_lower
    own = Q(subject_kind=kind, subject_id=str(subject.pk))
    entries = AuditEvent.objects.filter(reduce(or_, (find(subject) for find in _related[kind]), own))
    return entries.select_related("actor", "approved_by")[:LATEST]


def line(entry: AuditEvent, page: Model, *, dated: bool = True) -> SafeString:
    """Write an entry in a line, with a link to its subject unless that is the row of the page."""
    elsewhere = entry.subject_kind != page._meta.label_lower or entry.subject_id != str(page.pk)
    parts = [
        f"{entry.at:%Y-%m-%d %H:%M}" if dated else "",
        entry.actor or entry.address,
        entry.approved_by and f"approved by {entry.approved_by}",
        entry.act,
        _link_to_subject(entry) if elsewhere else "",
        ", ".join(_changes(entry)),
        entry.reason,
    ]
    return format_html_join(" · ", "{}", ((part,) for part in parts if part))


def _changes(entry: AuditEvent) -> Iterator[str]:
    for name, value in entry.after.items():
        if name in entry.before:
            yield f"{name} {_in_words(entry.before[name])} → {_in_words(value)}"
        elif value is not None:
            yield f"{name} {_in_words(value)}"


def _link_to_subject(entry: AuditEvent) -> SafeString | str:
    return link(entry.subject_kind.replace(".", "_"), entry.subject_id, entry.subject_name)
