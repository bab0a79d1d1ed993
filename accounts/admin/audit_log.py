"""The log of what staff did, to be looked at."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce
from operator import or_
from typing import Any

from django.contrib import admin
from django.db.models import Model, Q, QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import display

from accounts.admin.base import ReadOnlyAdmin
from accounts.models import StaffAct

LATEST = 10


@admin.register(StaffAct)
class StaffActAdmin(ReadOnlyAdmin):
    """Who did what to whom, when, from where and why."""

    list_display = ("at", "actor", "act", "subject", "reason", "credits", "address")
    list_select_related = ("actor",)
    list_filter = ("act", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("=actor__username", "subject_name", "=subject_id", "reason", "=address")
    fields = ("at", "actor", "address", "act", "subject", "reason", "credits", "was", "became")

    @display(description="About")
    def subject(self, entry: StaffAct) -> SafeString | str:
        return link_to_subject(entry)

    @display(description="Before")
    def was(self, entry: StaffAct) -> str:
        return json.dumps(entry.before, ensure_ascii=False, sort_keys=True)

    @display(description="After")
    def became(self, entry: StaffAct) -> str:
        return json.dumps(entry.after, ensure_ascii=False, sort_keys=True)


# By label of a model: which acts on other rows concern one of its rows, too. Other apps add theirs.
_concerning: dict[str, list[Callable[[Any], Q]]] = defaultdict(list)


def concerning(model: type[Model]) -> Callable[[Callable[[Any], Q]], Callable[[Any], Q]]:
    """Have acts on other rows named on the pages of `model` as well; the function says which, for one row."""

    def add(which: Callable[[Any], Q]) -> Callable[[Any], Q]:
        _concerning[model._meta.label_lower].append(which)
        return which

    return add


def acts_on(subject: Model) -> SafeString | str:
    """What staff did to one row, or to others that concern it, the latest first, for that row's own page."""
    kind = subject._meta.label_lower
    own = Q(subject_kind=kind, subject_id=str(subject.pk))
    which = reduce(or_, (find(subject) for find in _concerning[kind]), own)
    acts: QuerySet[StaffAct] = StaffAct.objects.filter(which)
    lines = [(line_of(entry, subject),) for entry in acts.select_related("actor")[:LATEST]]
    return format_html("<ul>{}</ul>", format_html_join("", "<li>{}</li>", lines)) if lines else "-"


def line_of(entry: StaffAct, page: Model) -> SafeString:
    """One act in a line; a link to its subject, where that is not the row whose `page` shows it."""
    elsewhere = entry.subject_kind != page._meta.label_lower or entry.subject_id != str(page.pk)
    parts = [
        f"{entry.at:%Y-%m-%d %H:%M}",
        entry.actor,
        entry.act,
        link_to_subject(entry) if elsewhere else "",
        ", ".join(_changes(entry)),
        entry.reason,
    ]
    return format_html_join(" · ", "{}", ((part,) for part in parts if part))


def _changes(entry: StaffAct) -> Iterator[str]:
    for name, value in entry.after.items():
        if name in entry.before:
            yield f"{name} {entry.before[name]} → {value}"
        elif value is not None:
            yield f"{name} {value}"


def link_to_subject(entry: StaffAct) -> SafeString | str:
    """What the act was done to; its name alone where it has no page."""
    app, _, model = entry.subject_kind.partition(".")
    try:
        page = reverse(f"admin:{app}_{model}_change", args=[entry.subject_id])
    except NoReverseMatch:
        return entry.subject_name
    return format_html('<a href="{}" class="text-link">{}</a>', page, entry.subject_name)
