"""Presets, content rules, reports of shared videos and failed tasks, for staff."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django_q.models import Failure, OrmQ, Schedule, Success
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.admin.audit_log import history_field
from accounts.admin.base import (
    LoggedAdmin,
    Question,
    ReadOnlyAdmin,
    allowed,
    ask_about_each,
    badge,
    link,
    row_action,
)
from accounts.spelling import skeletons
from generation.admin.jobs import PROMPT_LISTED, poster
from generation.jobs import queue, submission
from generation.models import BlockedPrompt, Preset, Report
from generation.staff import moderation

# Nothing is scheduled here, successes are not kept, and a queued task is a name that would be called.
for unused in (Schedule, Success, OrmQ, Failure):
    admin.site.unregister(unused)


class PresetForm(forms.ModelForm):
    """Every field of a preset."""

    def _get_validation_exclusions(self) -> set[str]:
        # One default at most is a constraint; choosing another default takes it from the one that was (save_model).
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]  # Django's, not in its stubs
        return excluded | {"is_default"}


@admin.register(Preset)
class PresetAdmin(LoggedAdmin):
    """Presets. A change is for new jobs only; a preset that was used is switched off rather than deleted."""

    form = PresetForm
    list_display = (
        "label",
        "name",
        "num_frames",
        "fps",
        "num_inference_steps",
        "price",
        "position",
        "is_default",
        "enabled",
    )
    list_filter = ("enabled",)
    history = history_field
    readonly_fields = ("history",)

    @display(description="Price", ordering="cost")
    def price(self, preset: Preset) -> str:
        return f"{settings.VIDEO_COST}, the default" if preset.cost is None else str(preset.cost)

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: Preset, form: forms.ModelForm, change: bool) -> None:
        if obj.is_default:
            Preset.objects.exclude(pk=obj.pk).update(is_default=False)
        super().save_model(request, obj, form, change)


class RuleForm(forms.ModelForm):
    """Every field of a content rule."""

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        text = values.get("text", "")
        if values.get("kind") == BlockedPrompt.Kind.PATTERN:
            try:
                submission.compiled(text)
            except submission.BadPattern as error:
                self.add_error("text", f"This is no pattern that can be used: {error}")
        elif text and "  " in skeletons(text):
            self.add_error("text", "There is no word in it.")
        return values


class PromptForm(forms.Form):
    prompt = forms.CharField(widget=UnfoldAdminTextareaWidget, strip=False, max_length=5000)


@admin.register(BlockedPrompt)
class BlockedPromptAdmin(LoggedAdmin):
    """Content rules: words and patterns that no prompt may contain. A blocked prompt costs nothing."""

    form = RuleForm
    list_display = ("text", "kind", "explanation", "enabled")
    list_filter = ("kind", "enabled")
    search_fields = ("text", "explanation")
    actions_list = ("try_out",)
    has_try_permission = allowed("generation.view_blockedprompt")

    @action(description="Try a prompt", url_path="try", permissions=["try"], icon="science")
    def try_out(self, request: HttpRequest) -> HttpResponse:
        """Show the rules that would block a prompt. Nothing is made."""
        form = PromptForm(request.POST or None)
        tried = form.is_valid()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Try a prompt",
            "form": form,
            "tried": tried,
            "broken": submission.matching(form.cleaned_data["prompt"]) if tried else [],
        }
        return TemplateResponse(request, "admin/try_prompt.html", context)


def _remove(report: Report, **values: Any) -> None:
    moderation.remove(report.job, **values)


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    """Visitors' reports of shared videos."""

    list_display = ("picture", "about", "words", "created_at", "state", "settled_by")
    list_select_related = ("job", "settled_by")
    list_filter = (("outcome", admin.EmptyFieldListFilter), "about", "outcome")
    search_fields = ("words", "=job__id")
    fields = (
        "about",
        "words",
        "video",
        "prompt",
        "address",
        "created_at",
        "outcome",
        "settled_at",
        "settled_by",
    )
    actions_detail = ("remove", "dismiss")
    has_settle_permission = allowed("generation.remove_video")

    @display(description="Video")
    def picture(self, report: Report) -> SafeString:
        words = Truncator(report.job.prompt).chars(PROMPT_LISTED)
        return format_html('<span class="staff-video">{}<span>{}</span></span>', poster(report.job), words)

    @display(description="State", ordering="outcome")
    def state(self, report: Report) -> SafeString:
        return badge(report.get_outcome_display(), "info") if report.outcome else badge("Waiting", "warning")

    @display(description="Video")
    def video(self, report: Report) -> SafeString | str:
        job = report.job
        return format_html("{} {}", poster(job), link("generation_generationjob", job.pk, job.public_id))

    @display(description="Prompt")
    def prompt(self, report: Report) -> str:
        return report.job.prompt

    @row_action(
        "Remove the video",
        "settle",
        _remove,
        icon="delete",
        why_not=lambda report: moderation.why_not_dismiss(report) or moderation.why_not_remove(report.job),
    )
    def remove(self, report: Report) -> Question:
        job = report.job
        return (
            f"“{job.prompt}” of {job.user} is taken away for good, its link stops working.",
            f"{job.public_id} is removed ($reason). Its owner is notified.",
        )

    @row_action("Dismiss", "settle", moderation.dismiss, icon="check", why_not=moderation.why_not_dismiss)
    def dismiss(self, report: Report) -> Question:
        return "The video stays as it is.", f"The reports of {report.job.public_id} are dismissed ($reason)."


@admin.register(Failure)
class FailureAdmin(ReadOnlyAdmin):
    """Background tasks that failed, and why. They are safe to repeat."""

    list_display = ("stopped", "task", "about", "error")
    fields = ("task", "about", "started", "stopped", "result")
    search_fields = ("func", "name")
    actions = ("run_again",)
    has_rerun_permission = allowed("django_q.change_failure")

    @display(description="Task", ordering="func")
    def task(self, task: Failure) -> str:
        """Name the task in words: `generation.jobs.tasks.store` is “store”."""
        return str(task.func).rpartition(".")[2].replace("_", " ")

    @display(description="About")
    def about(self, task: Failure) -> str:
        values = [
            *map(str, task.args or ()),
            *(f"{name} {value}" for name, value in (task.kwargs or {}).items()),
        ]
        return ", ".join(values) or "no row of its own"

    @display(description="Error")
    def error(self, task: Failure) -> str:
        return Truncator(str(task.result)).chars(100)

    @admin.action(description="Run these again", permissions=["rerun"])
    def run_again(self, request: HttpRequest, queryset: "QuerySet[Failure]") -> HttpResponseBase:
        return ask_about_each(self, request, queryset, title="Run again", do=queue.run_again)
