"""Jobs, nodes and presets, for staff."""

import uuid
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_q.models import OrmQ, Schedule, Success
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.admin_pages import LoggedAdmin, ReadOnlyAdmin, ask, row, say_why_not
from accounts.staff.clerks import Clerk
from generation import breaker, lifecycle, public_ids
from generation.models import GenerationJob, GpuNode, JobAttempt, Preset
from generation.staff import jobs
from generation.staff.jobs import why_not_cancel, why_not_refund
from generation.streaming import serve_file

State = GenerationJob.State
# Nothing is scheduled here, successes are not kept, and a queued task is a name that would be called.
for unused in (Schedule, Success, OrmQ):
    admin.site.unregister(unused)
STATE_COLOURS = {
    State.QUEUED: "info",
    State.RUNNING: "warning",
    State.STORING: "warning",
    State.COMPLETED: "success",
    State.FAILED: "danger",
}


class AttemptInline(TabularInline):
    """The tries at a job, as they were."""

    model = JobAttempt
    fk_name = "job"
    extra = 0
    can_delete = False
    fields = readonly_fields = (
        "node",
        "state",
        "step",
        "remote_id",
        "opened_at",
        "heard_at",
        "silent_since",
        "closed_at",
        "stopped_at_step",
        "error",
    )

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(GenerationJob)
class GenerationJobAdmin(ReadOnlyAdmin):
    """Jobs are moved by their lifecycle alone; staff can cancel and refund."""

    list_display = (
        "public_id",
        "user",
        "status",
        "preset",
        "progress",
        "cost",
        "source",
        "created_at",
        "took",
    )
    list_select_related = ("user", "preset")
    list_filter = ("state", "source", "preset", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields = ("prompt", "user__username", "error_message")
    inlines = (AttemptInline,)
    actions_detail = ("cancel", "refund")
    readonly_fields = ("preview", "credits", "public_id", "took")
    fieldsets = (
        (None, {"fields": ("preview", "public_id", "user", "source", "state", "prompt", "negative_prompt")}),
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
        ("File", {"fields": ("width", "height", "stored_frames", "duration_ms", "size_bytes", "deleted_at")}),
    )

    def has_cancel_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Clerk.of(request).may("generation.cancel_job")

    def has_refund_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Clerk.of(request).may("generation.refund_job")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "attempts__node__id__exact" or super().lookup_allowed(lookup, value, request)

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[GenerationJob]", search_term: str
    ) -> tuple["QuerySet[GenerationJob]", bool]:
        """A job's id, as people send it to support, finds just that job."""
        if job_id := public_ids.parse(search_term.strip()):
            return queryset.filter(pk=job_id), False
        found: tuple[QuerySet[GenerationJob], bool] = super().get_search_results(
            request, queryset, search_term
        )
        return found

    def get_urls(self) -> list[URLPattern]:
        files = [
            path(
                "<uuid:job_id>/<str:variant>",
                self.admin_site.admin_view(self.file),
                name="generation_generationjob_file",
            )
        ]
        return [*files, *super().get_urls()]

    def file(self, request: HttpRequest, job_id: uuid.UUID, variant: str) -> HttpResponseBase:
        """The clip or its poster, for the player on a job's page."""
        job: GenerationJob = row(self, request, str(job_id))
        if not self.has_view_permission(request, job):
            raise PermissionDenied
        if variant == "poster.jpg":
            return serve_file(request, job.poster.name or "", content_type="image/jpeg")
        return serve_file(request, job.video.name or "")

    @display(description="State", ordering="state", label=STATE_COLOURS)
    def status(self, job: GenerationJob) -> tuple[str, str]:
        return job.state, job.get_state_display()

    @display(description="Steps")
    def progress(self, job: GenerationJob) -> str:
        return f"{job.step}/{job.num_inference_steps}"

    @display(description="Took")
    def took(self, job: GenerationJob) -> str:
        return f"{job.elapsed_seconds:.1f} s" if job.elapsed_seconds is not None else "-"

    @display(description="In the books")
    def credits(self, job: GenerationJob) -> str:
        return ", ".join(f"{name} {amount}" for name, amount in lifecycle.receipt(job).items())

    @display(description="Video")
    def preview(self, job: GenerationJob) -> SafeString | str:
        if not job.video or job.deleted_at:
            return "-"
        video, poster = (
            reverse("admin:generation_generationjob_file", args=[job.pk, name])
            for name in ("video.mp4", "poster.jpg")
        )
        return format_html(
            '<video src="{}" poster="{}" controls muted playsinline preload="none" width="480"></video>',
            video,
            poster,
        )

    @action(description="Cancel", url_path="cancel", permissions=["cancel"], icon="cancel")
    def cancel(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        if why := why_not_cancel(job):
            return say_why_not(self, request, job, why)

        def stop(clerk: Clerk, wish: dict[str, Any]) -> str:
            jobs.cancel(clerk=clerk, job=job, **wish)
            return f"Canceled {job.public_id} ({wish['reason']}). {job.cost} credits were given back."

        explanation = (
            f"{job.public_id} of {job.user} is {job.state}. It stops, and {job.cost} credits are given back."
        )
        return ask(self, request, job, title="Cancel", explanation=explanation, act=stop)

    @action(description="Refund", url_path="refund", permissions=["refund"], icon="undo")
    def refund(self, request: HttpRequest, object_id: str) -> HttpResponse:
        job: GenerationJob = row(self, request, object_id)
        if why := why_not_refund(job):
            return say_why_not(self, request, job, why)

        def give_back(clerk: Clerk, wish: dict[str, Any]) -> str:
            back = jobs.refund(clerk=clerk, job=job, **wish)
            return f"Refunded {job.public_id}: {back} credits to {job.user} ({wish['reason']})."

        explanation = (
            f"{job.user} gets back the {job.cost} credits that {job.public_id} cost. The video stays theirs."
        )
        return ask(self, request, job, title="Refund", explanation=explanation, act=give_back)


class NodeForm(forms.ModelForm):
    """The key goes in and never comes out."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        max_length=300,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Never shown. Left empty, the key that is there stays.",
    )
    forget_api_key = forms.BooleanField(required=False, help_text="The node wants no key.")

    class Meta:
        model = GpuNode
        fields = ("name", "base_url", "api_key", "protocol", "enabled")

    def clean_base_url(self) -> str:
        address: str = self.cleaned_data["base_url"].rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise forms.ValidationError("The address must start with http:// or https://")
        if any(mark in address for mark in "?#@"):
            raise forms.ValidationError(
                "The address must have neither a password nor a query: scheme, host and port."
            )
        return address

    def clean_api_key(self) -> str:
        given: str = self.cleaned_data["api_key"]
        return given or self.instance.api_key

    def clean(self) -> dict[str, Any]:
        wish = super().clean() or {}
        if wish.get("forget_api_key"):
            wish["api_key"] = ""
        return wish


@admin.register(GpuNode)
class GpuNodeAdmin(LoggedAdmin):
    """Where clips are made. A node that is switched off finishes what it has."""

    form = NodeForm
    secret_fields = ("api_key",)
    list_display = (
        "name",
        "base_url",
        "enabled",
        "healthy",
        "status",
        "set_aside_reason",
        "backend",
        "seconds_per_step",
        "last_seen_at",
    )
    list_filter = ("enabled", "status", ("set_aside_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "base_url", "backend")
    heard = (
        "healthy",
        "status",
        "status_detail",
        "backend",
        "detected_protocol",
        "sizes",
        "capacity",
        "seconds_per_step",
        "last_seen_at",
        "leave_alone_until",
        "consecutive_failures",
        "set_aside_at",
        "set_aside_reason",
        "trials",
        "next_trial_at",
        "from_environment",
    )
    actions = ("bring_back",)
    fieldsets = (
        (None, {"fields": ("name", "base_url", "api_key", "forget_api_key", "protocol", "enabled")}),
        ("What was last heard of it", {"fields": heard}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The address of the environment's node follows VIDEO_API_URL."""
        return (*self.heard, "base_url") if obj is not None and obj.from_environment else self.heard

    @display(description="Healthy", boolean=True)
    def healthy(self, node: GpuNode) -> bool:
        return GpuNode.objects.healthy().filter(pk=node.pk).exists()

    @admin.action(description="Bring back what was set aside, without a trial clip", permissions=["change"])
    def bring_back(self, request: HttpRequest, queryset: QuerySet[GpuNode]) -> None:
        back = [node.name for node in queryset.exclude(set_aside_at=None)]
        for node in queryset.exclude(set_aside_at=None):
            breaker.bring_back(node)
            self.log_change(request, node, "Brought back")
        self.message_user(request, f"Back: {', '.join(back)}." if back else "None of these is set aside.")


class PresetForm(forms.ModelForm):
    class Meta:
        model = Preset
        fields = (
            "name",
            "label",
            "num_frames",
            "fps",
            "num_inference_steps",
            "guidance_scale",
            "cost",
            "position",
            "is_default",
            "enabled",
        )

    def _get_validation_exclusions(self) -> set[str]:
        # One default at most is a constraint; choosing another default takes it from the one that was (save_model).
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]  # Django's, not in its stubs
        return excluded | {"is_default"}


@admin.register(Preset)
class PresetAdmin(LoggedAdmin):
    """What is on offer. A change is for new jobs only; what was used is switched off rather than deleted."""

    form = PresetForm
    list_display = (
        "label",
        "name",
        "num_frames",
        "fps",
        "num_inference_steps",
        "cost",
        "position",
        "is_default",
        "enabled",
    )
    list_filter = ("enabled",)

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: Preset, form: forms.ModelForm, change: bool) -> None:
        if obj.is_default:
            Preset.objects.exclude(pk=obj.pk).update(is_default=False)
        super().save_model(request, obj, form, change)
