"""Background tasks that failed, for staff."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django_q.models import Failure, OrmQ, Schedule, Success
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget

from accounts.admin.audit_log import acts_on
from accounts.admin.base import LoggedAdmin, ReadOnlyAdmin, ask, ask_about_each, row, say_why_not
from accounts.staff.actor import Actor
from generation.jobs import queue, submission
from generation.models import BlockedPrompt, Preset, Report
from generation.staff import moderation
from generation.staff.moderation import why_not_remove


class RuleForm(forms.ModelForm):
    class Meta:
        model = BlockedPrompt
        fields = ("kind", "text", "explanation", "enabled")

    def clean(self) -> dict[str, Any]:
        wish = super().clean() or {}
        text = wish.get("text", "")
        if wish.get("kind") == BlockedPrompt.Kind.PATTERN:
            try:
                submission.compiled(text)
            except submission.BadPattern as error:
                self.add_error("text", f"This is no pattern that can be used: {error}")
        elif text and not submission.WORD.search(submission.normal(text)):
            self.add_error("text", "There is no word in it.")
        return wish


class PromptForm(forms.Form):
    prompt = forms.CharField(widget=UnfoldAdminTextareaWidget, strip=False, max_length=5000)


@admin.register(BlockedPrompt)
class BlockedPromptAdmin(LoggedAdmin):
    """Words and patterns that no prompt may contain. A blocked prompt costs nothing, and its writer is told."""

    form = RuleForm
    list_display = ("text", "kind", "explanation", "enabled")
    list_filter = ("kind", "enabled")
    search_fields = ("text", "explanation")
    actions_list = ("try_out",)

    def has_try_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.view_blockedprompt")

    @action(description="Try a prompt", url_path="try", permissions=["try"], icon="science")
    def try_out(self, request: HttpRequest) -> HttpResponse:
        """The test box: which rules a prompt would be against. Nothing is made."""
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


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    """What people have against shared videos."""

    list_display = ("created_at", "about", "words", "video", "outcome", "settled_by")
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

    @display(description="Video")
    def video(self, report: Report) -> SafeString:
        page = reverse("admin:generation_generationjob_change", args=[report.job_id])
        return format_html('<a href="{}" class="text-link">{}</a>', page, report.job.public_id)

    @display(description="Prompt")
    def prompt(self, report: Report) -> str:
        return report.job.prompt

    def has_settle_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.remove_video")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """What is settled is settled."""
        report = self.get_object(request, str(object_id))
        offered: list[Any] = super().get_actions_detail(request, object_id)
        return offered if isinstance(report, Report) and not report.outcome else []

    @action(description="Remove the video", url_path="remove", permissions=["settle"], icon="delete")
    def remove(self, request: HttpRequest, object_id: str) -> HttpResponse:
        report: Report = row(self, request, object_id)
        if request.method != "POST" and (why := why_not_remove(report.job)):
            return say_why_not(self, request, report, why)

        def take_away(actor: Actor, wish: dict[str, Any]) -> str:
            moderation.remove(actor=actor, job=report.job, **wish)
            return f"{report.job.public_id} is removed ({wish['reason']}). Its owner is told."

        explanation = (
            f"“{report.job.prompt}” of {report.job.user} is taken away for good, its link stops working."
        )
        return ask(self, request, report, title="Remove the video", explanation=explanation, act=take_away)

    @action(description="Dismiss", url_path="dismiss", permissions=["settle"], icon="check")
    def dismiss(self, request: HttpRequest, object_id: str) -> HttpResponse:
        report: Report = row(self, request, object_id)

        def leave(actor: Actor, wish: dict[str, Any]) -> str:
            moderation.dismiss(actor=actor, report=report, **wish)
            return f"The reports of {report.job.public_id} are dismissed ({wish['reason']})."

        return ask(self, request, report, title="Dismiss", explanation="The video stays as it is.", act=leave)


# What is on offer, for staff.


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
    readonly_fields = ("acts",)

    @display(description="History")
    def acts(self, preset: Preset) -> SafeString | str:
        return acts_on(preset)

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: Preset, form: forms.ModelForm, change: bool) -> None:
        if obj.is_default:
            Preset.objects.exclude(pk=obj.pk).update(is_default=False)
        super().save_model(request, obj, form, change)


# What must not be asked for, and what people report, for staff.


# Nothing is scheduled here, successes are not kept, and a queued task is a name that would be called.
for unused in (Schedule, Success, OrmQ, Failure):
    admin.site.unregister(unused)


@admin.register(Failure)
class FailureAdmin(ReadOnlyAdmin):
    """What broke, and why. Tasks are safe to repeat."""

    list_display = ("stopped", "func", "args", "error")
    fields = ("func", "args", "kwargs", "started", "stopped", "result")
    search_fields = ("func", "name")
    actions = ("run_again",)

    @display(description="Error")
    def error(self, task: Failure) -> str:
        return Truncator(str(task.result)).chars(100)

    def has_rerun_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("django_q.change_failure")

    @admin.action(description="Run these again", permissions=["rerun"])
    def run_again(self, request: HttpRequest, queryset: "QuerySet[Failure]") -> HttpResponse:
        def again(actor: Actor, task: Failure, wish: dict[str, Any]) -> None:
            queue.run_again(actor=actor, task=task, **wish)

        return ask_about_each(self, request, queryset, title="Run again", do=again)
