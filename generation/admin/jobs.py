"""Jobs, for staff."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminSelectWidget

from accounts.admin.audit_log import acts_on
from accounts.admin.base import (
    MOST_COUNTED,
    ReadOnlyAdmin,
    ReasonForm,
    ShortPaginator,
    ask,
    ask_about_each,
    badge,
    row,
    say_why_not,
    state_now,
)
from accounts.models import User
from accounts.staff.actor import Actor
from generation.admin.bulk_refunds import refund_chosen
from generation.jobs import lifecycle
from generation.models import GenerationJob, GpuNode, JobAttempt, fields
from generation.staff import jobs, moderation
from generation.staff.jobs import why_not_cancel, why_not_move, why_not_refund, why_not_retry
from generation.staff.moderation import why_not_remove
from generation.web.streaming import serve_file

# As the index `job_listed` has it.
ORDER = ("-created_at", "-pk")
# So many of the newest jobs tell whether many fit. To read one takes a hundredth of a millisecond at most.
SAMPLE = 2_000
# With no more than so many of the sample, all that fit are few enough for the index of words.
FEW = 20
# No more are read one by one. So fewer than one in ten fit where these were not enough for all that are counted.
FARTHEST = 10_000


class FoundJobs(ShortPaginator):
    """For a search by words, in the order of the list: by creation, the newest first."""

    object_list: "QuerySet[GenerationJob]"

    @classmethod
    def suits(cls, rows: "QuerySet[Any]") -> bool:
        return jobs.is_by_words(rows) and rows.query.order_by == ORDER

    @cached_property
    def count(self) -> int:
        """Up to MOST_COUNTED, as in every list."""
        if self._few:
            return len(self._all)
        return MOST_COUNTED if self._since_when(MOST_COUNTED) else super().count

    def page(self, number: int | str) -> "Page[Any]":
        number = self.validate_number(number)
        first, last = (number - 1) * self.per_page, min(number * self.per_page, self.count)
        if self._few:
            found = self.object_list.filter(pk__in=self._all[first:last])
        elif since := self._since_when(last):
            found = self._newer(since)[first:last]
        else:
            found = self.object_list.filter(pk__in=self._by_index(first, last))
        with _without("bitmapscan"):
            return Page(list(found), number, self)

    @cached_property
    def _few(self) -> bool:
        return max(self._fit_since.values(), default=0) <= FEW

    @cached_property
    def _all(self) -> list[UUID]:
        """All that fit, as far as they are counted: so the index is asked once."""
        return self._by_index(0, MOST_COUNTED)

    def _by_index(self, first: int, last: int) -> list[UUID]:
        """From the index of words, which is read whole for it, and put in order."""
        with _without("indexscan"):
            return list(self.object_list.values_list("pk", flat=True)[first:last])

    def _since_when(self, wanted: int) -> datetime | None:
        """A moment since which at least `wanted` fit; None when it is too long ago for one by one."""
        return next((since for since, fit in self._fit_since.items() if fit >= wanted), None)

    @cached_property
    def _fit_since(self) -> dict[datetime, int]:
        """How many fit, as far as they are counted: of the sample, and where that leaves it open, of the farthest."""
        found: dict[datetime, int] = {}
        moments = _moments()
        with _without("bitmapscan"):
            for since in moments:
                found[since] = self._newer(since).order_by()[:MOST_COUNTED].count()
                if not FEW < found[since] < MOST_COUNTED:
                    break
        return found

    def _newer(self, since: datetime) -> "QuerySet[GenerationJob]":
        return self.object_list.filter(created_at__gte=since)


def _moments() -> list[datetime]:
    """Of the last job of the sample and the last that is read, as far as there are that many."""
    jobs = GenerationJob.objects.order_by(*ORDER).values_list("created_at", flat=True)
    sample, farthest = (jobs[number - 1 : number] for number in (SAMPLE, FARTHEST))
    return list(sample.union(farthest, all=True).order_by("-created_at"))


@contextmanager
def _without(way: str) -> Iterator[None]:
    """PostgreSQL takes another way, until the end of the transaction. It would choose wrongly: of words that begin so
    it cannot know how many jobs have them. Without bitmaps it reads job by job, without the others it asks the index.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL enable_{way} = off")
        yield


# A page of the jobs that have certain words, the newest first, in the same time whether one of a million has them or
# all. The index of words knows no order: it gives every job that fits, of which all but a page are thrown away. That is
# quick while few fit. When many do, the newest jobs are read one by one instead, until there are enough.
#


State = GenerationJob.State
STATE_COLOURS = {
    State.QUEUED: "info",
    State.RUNNING: "warning",
    State.STORING: "warning",
    State.COMPLETED: "success",
    State.FAILED: "danger",
    State.CANCELED: "",
}
PROMPT_LISTED = 60


class MoveForm(ReasonForm):
    """Where to. What cannot take the job just now says so when it is chosen."""

    target = forms.ModelChoiceField(
        label="Node",
        queryset=GpuNode.objects.filter(enabled=True, set_aside_at=None),
        widget=UnfoldAdminSelectWidget,
    )
    field_order = ["target", "reason"]


# Why an action is impossible just now, by its name.
IMPOSSIBLE: dict[str, Callable[[GenerationJob], str | None]] = {
    "cancel": why_not_cancel,
    "refund": why_not_refund,
    "retry": why_not_retry,
    "move": why_not_move,
    "remove_video": why_not_remove,
}


class RefundedFilter(admin.SimpleListFilter):
    """What was given back, and what was not."""

    title = "refunded"
    parameter_name = "refunded"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "Yes"), ("no", "No")]

    def queryset(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]"
    ) -> "QuerySet[GenerationJob]":
        match self.value():
            case "yes":
                return queryset.filter(jobs.refunded())
            case "no":
                return queryset.exclude(jobs.refunded())
        return queryset


@admin.register(GenerationJob)
class GenerationJobAdmin(ReadOnlyAdmin):
    """Jobs are moved by their lifecycle alone; staff cancel, refund, retry and move them by its operations."""

    class Media:
        js = ("admin_live.js",)

    list_display = (
        "what",
        "user",
        "status",
        "node",
        "preset",
        "price",
        "source",
        "created_at",
        "took",
    )
    list_select_related = ("user", "preset", "current_attempt__node")
    list_filter = ("state", RefundedFilter, "source", "preset", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("prompt",)  # there is a box for it; get_search_results says what it finds
    search_help_text = "Words of the prompt or error, a job's id, or a whole username or e-mail address"
    actions = ("cancel_all", "refund_all", "retry_all", "move_all")
    actions_detail = ("cancel", "refund", "retry", "move", "remove_video")
    readonly_fields = ("preview", "timeline", "credits", "public_id", "took", "now", "acts")
    fieldsets = (
        (None, {"fields": ("preview", "public_id", "user", "source", "now", "prompt", "negative_prompt")}),
        ("Attempts", {"fields": ("timeline",)}),
        ("Credits", {"fields": ("cost", "credits")}),
        (
            "Making",
            {
                "fields": (
                    "preset",
                    "num_frames",
                    "fps",
                    "num_inference_steps",
                    "guidance_scale",
                    "seed",
                    "step",
                    "attempt_count",
                    "remixed_from",
                    "error_code",
                    "error_message",
                )
            },
        ),
        (
            "Times",
            {"fields": ("created_at", "started_at", "finished_at", "took", "deadline_at", "generation_ms")},
        ),
        ("What staff did", {"fields": ("acts",)}),
        ("File", {"fields": ("width", "height", "stored_frames", "duration_ms", "size_bytes", "deleted_at")}),
    )

    def has_cancel_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.cancel_job")

    def has_refund_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.refund_job")

    def has_retry_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.retry_job")

    def has_move_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.move_job")

    def has_remove_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.remove_video")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[GenerationJob]":
        found: QuerySet[GenerationJob] = super().get_queryset(request)
        return found.annotate(refunded=jobs.refunded())

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """What is impossible just now is not offered."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        job = self.get_object(request, str(object_id))
        if not isinstance(job, GenerationJob):
            return []
        return [each for each in offered if IMPOSSIBLE[each.method.original_function_name](job) is None]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "attempts__node__id__exact" or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]", search_term: str
    ) -> tuple["QuerySet[GenerationJob]", bool]:
        """A job's id, as people send it to support, finds just that job; a whole name finds that person's."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if job_id := fields.job_id(term):
            return queryset.filter(pk=job_id), False
        people = User.objects.filter(Q(username=term) | Q(email=term)).values_list("pk", flat=True)
        if found := list(people):
            return queryset.filter(user__in=found), False
        return jobs.with_words(queryset, term), False

    def get_paginator(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]", *args: Any, **kwargs: Any
    ) -> Paginator:
        kind = FoundJobs if FoundJobs.suits(queryset) else self.paginator
        return kind(queryset, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        names = {"video": "video.mp4", "poster": "poster.jpg"}
        files = [
            path(
                f"<uuid:job_id>/{file}",
                self.admin_site.admin_view(self.file),
                {"variant": variant},
                f"generation_generationjob_{variant}",
            )
            for variant, file in names.items()
        ]
        return [*files, *super().get_urls()]

    def file(self, request: HttpRequest, job_id: uuid.UUID, variant: str) -> HttpResponseBase:
        """The clip or its poster, for the player on a job's page."""
        job: GenerationJob = row(self, request, str(job_id))
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        if variant == "poster":
            return serve_file(request, job.poster.name or "", content_type="image/jpeg")
        return serve_file(request, job.video.name or "")

    @display(description="Video", ordering="prompt")
    def what(self, job: GenerationJob) -> str:
        return Truncator(job.prompt).chars(PROMPT_LISTED)

    @display(description="State", ordering="state")
    def status(self, job: GenerationJob) -> SafeString:
        return badge(job.state, _state_in_words(job), STATE_COLOURS)

    @display(description="State")
    def now(self, job: GenerationJob) -> SafeString:
        return state_now(self.status(job), moves=job.is_live)

    @display(description="Node")
    def node(self, job: GenerationJob) -> str:
        return str(job.current_attempt.node) if job.current_attempt else "-"

    @display(description="Cost", ordering="cost")
    def price(self, job: Any) -> SafeString | str:
        return (
            format_html("{} {}", job.cost, badge(True, "refunded", {True: "info"}))
            if job.refunded
            else str(job.cost)
        )

    @display(description="Took")
    def took(self, job: GenerationJob) -> str:
        return f"{job.elapsed_seconds:.1f} s" if job.elapsed_seconds is not None else "-"

    @display(description="One after the other")
    def timeline(self, job: GenerationJob) -> SafeString | str:
        """Every try at it: where, what became of it, until when somebody follows it, its times, its error."""
        lines = [
            (reverse("admin:generation_gpunode_change", args=[each.node_id]), each.node, *_told(each))
            for each in job.attempts.select_related("node").order_by("opened_at")
        ]
        item = '<li class="mb-3"><a href="{}" class="text-link">{}</a> · {}<br>{}<br>{}</li>'
        return format_html("<ol>{}</ol>", format_html_join("", item, lines)) if lines else "none yet"

    @display(description="In the books")
    def credits(self, job: GenerationJob) -> SafeString:
        sums = ", ".join(f"{name} {amount}" for name, amount in lifecycle.receipt(job).items())
        entries = f"{reverse('admin:accounts_credittransaction_changelist')}?reference__exact={job.pk}"
        return format_html('{} · <a href="{}" class="text-link">Entries</a>', sums, entries)

    @display(description="Log")
    def acts(self, job: GenerationJob) -> SafeString | str:
        return acts_on(job)

    @display(description="Video")
    def preview(self, job: GenerationJob) -> SafeString | str:
        if not job.video or job.deleted_at:
            return "-"
        video, poster = (
            reverse(f"admin:generation_generationjob_{variant}", args=[job.pk])
            for variant in ("video", "poster")
        )
        return format_html(
            '<video src="{}" poster="{}" controls muted playsinline preload="none" width="480"></video>',
            video,
            poster,
        )

    @action(description="Cancel", url_path="cancel", permissions=["cancel"], icon="cancel")
    def cancel(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        explanation = (
            f"{job.public_id} of {job.user} is {job.state}. It stops, and {job.cost} credits are given back."
        )

        def stop(actor: Actor, wish: dict[str, Any]) -> str:
            jobs.cancel(actor=actor, job=job, **wish)
            return f"Canceled {job.public_id} ({wish['reason']}). {job.cost} credits were given back."

        return self._ask_if_possible(request, job, "cancel", "Cancel", explanation, stop)

    @action(description="Refund", url_path="refund", permissions=["refund"], icon="undo")
    def refund(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        explanation = (
            f"{job.user} gets back the {job.cost} credits that {job.public_id} cost. The video stays theirs."
        )

        def give_back(actor: Actor, wish: dict[str, Any]) -> str:
            back = jobs.refund(actor=actor, job=job, **wish)
            return f"Refunded {job.public_id}: {back} credits to {job.user} ({wish['reason']})."

        return self._ask_if_possible(request, job, "refund", "Refund", explanation, give_back)

    @action(description="Retry", url_path="retry", permissions=["retry"], icon="replay")
    def retry(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        explanation = (
            f"The same video is made again for {job.user}, who pays nothing for it: nobody asked them."
        )

        def again(actor: Actor, wish: dict[str, Any]) -> str:
            fresh = jobs.retry(actor=actor, job=job, **wish)
            return f"{job.public_id} is made again as {fresh.public_id} ({wish['reason']})."

        return self._ask_if_possible(request, job, "retry", "Retry", explanation, again)

    @action(description="Move to another node", url_path="move", permissions=["move"], icon="move_up")
    def move(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        where = job.current_attempt.node if job.current_attempt else "no node"
        explanation = (
            f"{job.public_id} is on {where}, at step {job.step}. It begins afresh on the other node."
        )

        def take_over(actor: Actor, wish: dict[str, Any]) -> str:
            jobs.move(actor=actor, job=job, **wish)
            return f"{job.public_id} is on {wish['target']} now ({wish['reason']})."

        return self._ask_if_possible(request, job, "move", "Move", explanation, take_over, MoveForm)

    @action(description="Remove the video", url_path="remove-video", permissions=["remove"], icon="delete")
    def remove_video(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        explanation = (
            f"“{job.prompt}” is taken away from {job.user} for good, who is told why. Nothing is refunded."
        )

        def take_away(actor: Actor, wish: dict[str, Any]) -> str:
            moderation.remove(actor=actor, job=job, **wish)
            return f"{job.public_id} is removed ({wish['reason']}). Its owner is told."

        return self._ask_if_possible(request, job, "remove_video", "Remove the video", explanation, take_away)

    @admin.action(description="Cancel what is live of these", permissions=["cancel"])
    def cancel_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponse:
        return self._each(request, queryset, "Cancel", why_not_cancel, jobs.cancel)

    @admin.action(description="Make again what failed of these", permissions=["retry"])
    def retry_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponse:
        return self._each(request, queryset, "Retry", why_not_retry, jobs.retry)

    @admin.action(description="Move what runs of these to another node", permissions=["move"])
    def move_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponse:
        return self._each(request, queryset, "Move", why_not_move, jobs.move, MoveForm)

    @admin.action(description="Refund what was charged of these", permissions=["refund"])
    def refund_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponse:
        return refund_chosen(self, request, queryset)

    def _ask_if_possible(
        self,
        request: HttpRequest,
        job: GenerationJob,
        name: str,
        title: str,
        explanation: str,
        act: Callable[[Actor, dict[str, Any]], str],
        form_class: type[forms.Form] = ReasonForm,
    ) -> HttpResponse:
        if request.method != "POST" and (why := IMPOSSIBLE[name](job)):
            return say_why_not(self, request, job, why)
        return ask(self, request, job, title=title, explanation=explanation, act=act, form_class=form_class)

    def _each(
        self,
        request: HttpRequest,
        chosen: QuerySet[GenerationJob],
        title: str,
        why_not: Callable[[GenerationJob], str | None],
        operation: Callable[..., object],
        form_class: type[forms.Form] = ReasonForm,
    ) -> HttpResponse:
        def do(actor: Actor, job: GenerationJob, wish: dict[str, Any]) -> None:
            operation(actor=actor, job=job, **wish)

        rows = chosen.select_related("user")
        return ask_about_each(self, request, rows, title=title, do=do, why_not=why_not, form_class=form_class)


def _told(attempt: JobAttempt) -> tuple[str, str, str]:
    """What is said of an attempt: its state and step, its times, its error."""
    state = f"{attempt.get_state_display()}, step {attempt.step}"
    if attempt.stopped_at_step is not None:
        state += f", stopped at step {attempt.stopped_at_step}"
    moments = {
        "opened": attempt.opened_at,
        "posted": attempt.posted_at,
        "last heard": attempt.heard_at,
        "silent since": attempt.silent_since,
        "closed": attempt.closed_at,
        "followed until": None if attempt.closed_at else attempt.lease_expires_at,
    }
    times = " · ".join(f"{name} {when:%Y-%m-%d %H:%M:%S}" for name, when in moments.items() if when)
    return state, f"{times} · {attempt.remote_id}" if attempt.remote_id else times, attempt.error


def _state_in_words(job: GenerationJob) -> str:
    step = f", step {job.step} of {job.num_inference_steps}" if job.state == State.RUNNING else ""
    return f"{job.get_state_display()}{step}"
