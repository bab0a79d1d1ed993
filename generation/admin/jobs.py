"""Jobs, for staff."""

import uuid
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import Truncator
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from accounts.admin.audit_log import history_field, related_to
from accounts.admin.base import (
    Question,
    ReadOnlyAdmin,
    ReasonForm,
    allowed,
    ask_about_each,
    badge,
    link,
    row,
    row_action,
    state_now,
)
from accounts.models import User
from accounts.staff.actor import Actor
from accounts.staff.audit_log import note_look
from generation.admin.bulk_refunds import refund_chosen
from generation.admin.job_search import FoundJobs, ids_in, is_by_words, with_words
from generation.jobs import lifecycle
from generation.models import GenerationJob, GpuNode, JobAttempt, fields
from generation.staff import jobs, moderation
from generation.staff.jobs import why_not_cancel, why_not_move, why_not_refund, why_not_retry
from generation.web.streaming import serve_file

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
# Entries of the audit log about a user's older videos are shown on the pages of these.
VIDEOS_LOOKED_AT = 200


class MoveForm(ReasonForm):
    """The node to move to. One that cannot take the job just now is refused when it is chosen."""

    target = forms.ModelChoiceField(
        label="Node",
        queryset=GpuNode.objects.filter(enabled=True, set_aside_at=None),
        widget=UnfoldAdminSelectWidget,
    )
    field_order = ["target", "reason"]


class RefundedFilter(admin.SimpleListFilter):
    """Jobs whose credits were given back, and others."""

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


def poster(job: GenerationJob) -> SafeString:
    """Render a small poster, or as large an empty place, so that a list does not jump when pictures come."""
    if not job.poster or job.deleted_at:
        return mark_safe('<span class="staff-poster"></span>')
    source = reverse("admin:generation_generationjob_poster", args=[job.pk])
    return format_html(
        '<img class="staff-poster" src="{}" alt="" width="72" height="48" loading="lazy">', source
    )


def state_badge(job: GenerationJob) -> SafeString:
    """Render the state, with the step of what runs and the reason of what failed."""
    step = f", step {job.step} of {job.num_inference_steps}" if job.state == State.RUNNING else ""
    shown = badge(f"{job.get_state_display()}{step}", STATE_COLOURS[State(job.state)])
    if not job.error_message:
        return shown
    return format_html('<span>{}<span class="staff-note">{}</span></span>', shown, job.error_message)


def charge(job: Any) -> SafeString | str:
    """Say what a job has cost its owner in the end; of a live one, what is held. It was read by `jobs.with_charged`."""
    if job.is_live:
        return f"{job.cost} held" if job.cost else "free"
    if job.refunded:
        return format_html("{} {}", job.charged, badge("refunded", "info"))
    return str(job.charged) if job.charged or job.state != State.COMPLETED else "free"


def _retry(job: GenerationJob, **values: Any) -> str:
    again: GenerationJob = jobs.retry(job, **values)
    return again.public_id


@admin.register(GenerationJob)
class GenerationJobAdmin(ReadOnlyAdmin):
    """Jobs. Only the lifecycle changes them; staff cancel, refund, retry and move them by operations."""

    private = True

    class Media:
        js = ("admin_live.js",)

    list_display = ("what", "user", "status", "node", "preset", "charge", "source", "created_at", "took")
    list_select_related = ("user", "preset", "current_attempt__node")
    list_filter = ("state", RefundedFilter, "source", "preset", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("prompt",)  # there is a box for it; get_search_results says what it finds
    search_help_text = "Words of the prompt or error, a job's id, or a whole username or e-mail address"
    history = history_field
    actions = ("cancel_all", "refund_all", "retry_all", "move_all")
    actions_detail = ("cancel", "refund", "retry", "move", "remove_video")
    readonly_fields = (
        "preview", "timeline", "credits", "number", "took", "now", "again", "history", "guidance", "on_gpu",
        "asked_for", "file_facts",
    )  # fmt: skip
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "preview",
                    "number",
                    "user",
                    "source",
                    "now",
                    "again",
                    "prompt",
                    "negative_prompt",
                )
            },
        ),
        ("Attempts", {"fields": ("timeline",)}),
        ("Credits", {"fields": ("cost", "credits")}),
        (
            "Making",
            {
                "fields": (
                    "preset",
                    "asked_for",
                    "num_frames",
                    "fps",
                    "num_inference_steps",
                    "step",
                    "guidance",
                    "seed",
                    "attempt_count",
                )
            },
        ),
        ("Times", {"fields": ("created_at", "started_at", "finished_at", "took", "on_gpu", "deadline_at")}),
        ("What staff did", {"fields": ("history",)}),
        ("File", {"fields": ("file_facts", "deleted_at")}),
    )

    has_cancel_permission = allowed("generation.cancel_job")
    has_refund_permission = allowed("generation.refund_job")
    has_retry_permission = allowed("generation.retry_job")
    has_move_permission = allowed("generation.move_job")
    has_remove_permission = allowed("generation.remove_video")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[GenerationJob]":
        found: QuerySet[GenerationJob] = super().get_queryset(request)
        return jobs.with_charged(found)

    def get_fieldsets(self, request: HttpRequest, obj: GenerationJob | None = None) -> Any:
        """Leave out what there is nothing of."""
        names = ("negative_prompt", "remixed_from", "deleted_at")
        empty = {name for name in names if not getattr(obj, name, None)}
        if obj is None or not jobs.made_again(obj):
            empty.add("again")
        sets = super().get_fieldsets(request, obj)
        return [
            (title, {"fields": [name for name in each["fields"] if name not in empty]})
            for title, each in sets
        ]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        ours = ("attempts__node__id__exact", "user__id__exact")
        return lookup in ours or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]", search_term: str
    ) -> tuple["QuerySet[GenerationJob]", bool]:
        """Find a job by its public id, the jobs of a user by a whole name or address, others by words."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if ids := ids_in(term):
            return queryset.filter(pk__in=ids), False
        users = list(User.objects.filter(Q(username=term) | Q(email=term)).values_list("pk", flat=True))
        return queryset.filter(user__in=users) if users else with_words(queryset, term), False

    def get_paginator(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]", *args: Any, **kwargs: Any
    ) -> Paginator:
        kind = FoundJobs if is_by_words(queryset) else self.paginator
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
        """Serve the clip or its poster for the player on a job's page."""
        job: GenerationJob = row(self, request, str(job_id))
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        note_look(Actor.of(request), job)
        if variant == "poster":
            return serve_file(request, job.poster.name or "", content_type="image/jpeg")
        return serve_file(request, job.video.name or "")

    # --- Fields ---

    @display(description="Video", ordering="prompt")
    def what(self, job: GenerationJob) -> SafeString:
        words = Truncator(job.prompt).chars(PROMPT_LISTED)
        return format_html('<span class="staff-video">{}<span>{}</span></span>', poster(job), words)

    @display(description="State", ordering="state")
    def status(self, job: GenerationJob) -> SafeString:
        return state_badge(job)

    @display(description="State")
    def now(self, job: GenerationJob) -> SafeString:
        return state_now(state_badge(job), moves=job.is_live)

    @display(description="Node")
    def node(self, job: GenerationJob) -> str:
        return str(job.current_attempt.node) if job.current_attempt else "not yet"

    @display(description="Charged")
    def charge(self, job: GenerationJob) -> SafeString | str:
        return charge(job)

    @display(description="Took")
    def took(self, job: GenerationJob) -> str:
        return f"{job.elapsed_seconds:.1f} s" if job.elapsed_seconds is not None else "not ended"

    @display(description="Id")
    def number(self, job: GenerationJob) -> str:
        return job.public_id

    @display(description="Made again as")
    def again(self, job: GenerationJob) -> SafeString | str:
        """Link to the job by which staff had this one made again."""
        again = jobs.made_again(job)
        return link("generation_generationjob", again, fields.public_id(again)) if again else "-"

    @display(description="Guidance scale")
    def guidance(self, job: GenerationJob) -> str:
        return "the model's own" if job.guidance_scale is None else f"{job.guidance_scale:g}"

    @display(description="Model and size asked for")
    def asked_for(self, job: GenerationJob) -> str:
        return f"{job.model or 'any model'}, {job.size.replace('x', '×') or 'its own size'}"

    @display(description="On the GPU")
    def on_gpu(self, job: GenerationJob) -> str:
        return "the node has not said" if job.generation_ms is None else f"{job.generation_ms / 1000:.1f} s"

    @display(description="Stored file")
    def file_facts(self, job: GenerationJob) -> str:
        if not job.video or job.size_bytes is None or job.duration_ms is None:
            return "no file"
        size = filesizeformat(job.size_bytes)
        return f"{job.width}×{job.height}, {job.stored_frames} frames, {job.duration_ms / 1000:.1f} s, {size}"

    @display(description="One after the other")
    def timeline(self, job: GenerationJob) -> SafeString | str:
        """List every attempt, with its node, state, times and error."""
        attempts = job.attempts.select_related("node").order_by("opened_at")
        item = '<li class="mb-3">{} · {}<br>{}<br>{}</li>'
        items = format_html_join("", item, (_described(attempt) for attempt in attempts))
        return format_html("<ol>{}</ol>", items) if items else "none yet"

    @display(description="In the books")
    def credits(self, job: GenerationJob) -> SafeString:
        sums = ", ".join(f"{name} {amount}" for name, amount in lifecycle.receipt(job).items())
        entries = f"{reverse('admin:accounts_credittransaction_changelist')}?reference__exact={job.pk}"
        return format_html('{} · <a href="{}" class="text-link">Entries</a>', sums, entries)

    @display(description="Video")
    def preview(self, job: GenerationJob) -> SafeString | str:
        if not job.video or job.deleted_at:
            return "no file"
        files = (
            reverse(f"admin:generation_generationjob_{each}", args=[job.pk]) for each in ("video", "poster")
        )
        # The place of the picture is there before it, so that nothing jumps.
        return format_html(
            '<video src="{}" poster="{}" controls muted playsinline preload="none" width="480" '
            'style="max-width: 100%; aspect-ratio: {} / {}"></video>',
            *files,
            job.width or 3,
            job.height or 2,
        )

    # --- Operations ---

    @row_action("Cancel", "cancel", jobs.cancel, icon="cancel", why_not=why_not_cancel)
    def cancel(self, job: GenerationJob) -> Question:
        return (
            f"{job.public_id} of {job.user} is {job.state}. It stops, and {job.cost} credits are given back.",
            f"Canceled {job.public_id} ($reason). {job.cost} credits were given back.",
        )

    @row_action("Refund", "refund", jobs.refund, icon="undo", why_not=why_not_refund)
    def refund(self, job: GenerationJob) -> Question:
        return (
            f"{job.user} gets back the {job.cancel_fee or job.cost} credits that {job.public_id} cost. The clip stays.",
            f"Refunded {job.public_id}: $result credits to {job.user} ($reason).",
        )

    @row_action("Retry", "retry", _retry, icon="replay", why_not=why_not_retry)
    def retry(self, job: GenerationJob) -> Question:
        return (
            f"The same video is made again for {job.user}, who pays nothing for it.",
            f"{job.public_id} is made again as $result ($reason).",
        )

    @row_action(
        "Move to another node",
        "move",
        jobs.move,
        icon="move_up",
        why_not=why_not_move,
        title="Move",
        form_class=MoveForm,
    )
    def move(self, job: GenerationJob) -> Question:
        where = job.current_attempt.node if job.current_attempt else "no node"
        return (
            f"{job.public_id} is on {where}, at step {job.step}. It begins afresh on the other node.",
            f"{job.public_id} is on $target now ($reason).",
        )

    @row_action(
        "Remove the video", "remove", moderation.remove, icon="delete", why_not=moderation.why_not_remove
    )
    def remove_video(self, job: GenerationJob) -> Question:
        return (
            f"“{job.prompt}” is taken away from {job.user} for good, who reads the reason. Nothing is refunded.",
            f"{job.public_id} is removed ($reason). Its owner is notified.",
        )

    @admin.action(description="Cancel what is live of these", permissions=["cancel"])
    def cancel_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponseBase:
        return self._each(request, queryset, title="Cancel", do=jobs.cancel_each, why_not=why_not_cancel)

    @admin.action(description="Make again what failed of these", permissions=["retry"])
    def retry_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponseBase:
        chosen = jobs.with_made_again(queryset)
        return self._each(request, chosen, title="Retry", do=jobs.retry_each, why_not=why_not_retry)

    @admin.action(description="Move what runs of these to another node", permissions=["move"])
    def move_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponseBase:
        move = {"do": jobs.move_each, "why_not": why_not_move, "form_class": MoveForm}
        return self._each(request, queryset, title="Move", **move)

    @admin.action(description="Refund what was charged of these", permissions=["refund"])
    def refund_all(self, request: HttpRequest, queryset: QuerySet[GenerationJob]) -> HttpResponseBase:
        return refund_chosen(self, request, queryset)

    def _each(
        self, request: HttpRequest, chosen: QuerySet[GenerationJob], **options: Any
    ) -> HttpResponseBase:
        return ask_about_each(self, request, chosen.select_related("user"), **options)


def _described(attempt: JobAttempt) -> tuple[SafeString | str, str, str, str]:
    """Describe an attempt: node, state and step, times, error."""
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
    times = f"{times} · {attempt.remote_id}" if attempt.remote_id else times
    return link("generation_gpunode", attempt.node_id, attempt.node), state, times, attempt.error


@related_to(User)
def entries_about_videos(user: User) -> Q:
    latest = user.jobs.order_by("-created_at").values_list("pk", flat=True)[:VIDEOS_LOOKED_AT]
    return Q(subject_kind=GenerationJob._meta.label_lower, subject_id__in=[str(pk) for pk in latest])
