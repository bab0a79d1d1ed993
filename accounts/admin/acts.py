"""The log of what staff did, to be looked at."""

import json

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import display

from accounts.admin_pages import ReadOnlyAdmin
from accounts.staff.models import StaffAct

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
        app, _, model = entry.subject_kind.partition(".")
        try:
            page = reverse(f"admin:{app}_{model}_change", args=[entry.subject_id])
        except NoReverseMatch:
            return entry.subject_name
        return format_html('<a href="{}" class="text-link">{}</a>', page, entry.subject_name)

    @display(description="Before")
    def was(self, entry: StaffAct) -> str:
        return json.dumps(entry.before, ensure_ascii=False, sort_keys=True)

    @display(description="After")
    def became(self, entry: StaffAct) -> str:
        return json.dumps(entry.after, ensure_ascii=False, sort_keys=True)


def acts_on(subject: Model) -> SafeString | str:
    """What staff did to one row, the latest first, for that row's own page."""
    acts: QuerySet[StaffAct] = StaffAct.objects.filter(
        subject_kind=subject._meta.label_lower, subject_id=str(subject.pk)
    )
    lines = [(line_of(entry),) for entry in acts.select_related("actor")[:LATEST]]
    return format_html("<ul>{}</ul>", format_html_join("", "<li>{}</li>", lines)) if lines else "-"


def line_of(entry: StaffAct) -> str:
    changes = ", ".join(
        f"{name} {entry.before.get(name, '-')} → {value}" for name, value in entry.after.items()
    )
    parts = [f"{entry.at:%Y-%m-%d %H:%M}", str(entry.actor), entry.act, changes, entry.reason]
    return " · ".join(part for part in parts if part)
