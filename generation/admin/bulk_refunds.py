"""The incident desk: what a node charged for in a bad time is refunded in one go, after a look at what it would be."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminSplitDateTimeWidget

from accounts.admin.base import ReadOnlyAdmin, ReasonForm, ask, badge, state_now
from accounts.staff.actor import Actor
from generation.models import BatchedRefund, GenerationJob, GpuNode, RefundBatch
from generation.staff import bulk_refunds, jobs


class WindowForm(forms.Form):
    """Which node, and when it was bad."""

    node = forms.ModelChoiceField(queryset=GpuNode.objects.all(), widget=UnfoldAdminSelectWidget)
    since = forms.SplitDateTimeField(
        label="From",
        widget=UnfoldAdminSplitDateTimeWidget,
        help_text="UTC; what counts is when a video was ready",
    )
    until = forms.SplitDateTimeField(label="Until", widget=UnfoldAdminSplitDateTimeWidget, help_text="UTC")

    def clean(self) -> dict[str, Any]:
        wish = super().clean() or {}
        since, until = wish.get("since"), wish.get("until")
        if since and until and since >= until:
            raise forms.ValidationError("“From” must be before “until”.")
        return wish


class PlanForm(ReasonForm):
    """The reason, and the plan that the actor read, so that nothing else is carried out."""

    jobs = forms.IntegerField(widget=forms.HiddenInput)
    people = forms.IntegerField(widget=forms.HiddenInput)
    credits = forms.IntegerField(widget=forms.HiddenInput)


@admin.register(RefundBatch)
class RefundBatchAdmin(ReadOnlyAdmin):
    """Refunds of many jobs: how far they are, and a new one."""

    class Media:
        js = ("admin_live.js",)

    list_display = ("created_at", "node", "since", "until", "jobs", "credits", "status", "actor", "reason")
    list_select_related = ("node", "actor")
    list_filter = ("state",)
    actions_list = ("begin",)
    readonly_fields = ("now", "how_far")
    fields = (
        "now",
        "how_far",
        "node",
        "since",
        "until",
        "jobs",
        "credits",
        "reason",
        "actor",
        "created_at",
        "finished_at",
    )

    @display(description="State")
    def status(self, batch: RefundBatch) -> SafeString:
        colours = {RefundBatch.State.RUNNING: "warning", RefundBatch.State.DONE: "success"}
        return badge(batch.state, batch.get_state_display(), colours)

    @display(description="State")
    def now(self, batch: RefundBatch) -> SafeString:
        return state_now(self.status(batch), moves=batch.state == RefundBatch.State.RUNNING)

    @display(description="Progress")
    def how_far(self, batch: RefundBatch) -> SafeString:
        counts = bulk_refunds.progress(batch)
        waiting = counts[BatchedRefund.State.WAITING]
        over = counts[BatchedRefund.State.PASSED_OVER]
        return format_html(
            '<progress max="{}" value="{}"></progress> {} refunded, {} waiting, {} passed over (refunded before)',
            batch.jobs,
            batch.jobs - waiting,
            counts[BatchedRefund.State.REFUNDED],
            waiting,
            over,
        )

    def has_begin_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.refund_job")

    def get_urls(self) -> list[URLPattern]:
        plan = path("plan/", self.admin_site.admin_view(self.plan), name="generation_refundbatch_plan")
        return [plan, *super().get_urls()]

    @action(
        description="Refund a bad time of a node", url_path="begin", permissions=["begin"], icon="healing"
    )
    def begin(self, request: HttpRequest) -> HttpResponse:
        """First step: which node (`of` proposes one) and when. It only asks, and leads to `plan`."""
        sent = "node" in request.GET
        proposed = _until_now() | {"node": request.GET.get("of")}
        form = WindowForm(request.GET) if sent else WindowForm(initial=proposed)
        if sent and form.is_valid():
            if bulk_refunds.charged_on(**form.cleaned_data).exists():
                plan = f"{reverse('admin:generation_refundbatch_plan')}?{request.GET.urlencode()}"
                return HttpResponseRedirect(plan)
            form.add_error(None, "It made no video in that time that is charged and not refunded yet.")
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Refund a bad time of a node",
            "form": form,
        }
        return TemplateResponse(request, "admin/incident.html", context)

    def plan(self, request: HttpRequest) -> HttpResponse:
        """Second step: what it would come to, the reason, and the decision."""
        Actor.of(request).must("generation.refund_job")
        window = WindowForm(request.GET)
        if not window.is_valid():
            return HttpResponseRedirect(reverse("admin:generation_refundbatch_begin"))
        chosen = window.cleaned_data
        where = f"{chosen['node']}, {chosen['since']:%Y-%m-%d %H:%M} to {chosen['until']:%Y-%m-%d %H:%M} UTC"
        return _decide(self, request, bulk_refunds.charged_on(**chosen), where, **chosen)


def _until_now() -> dict[str, Any]:
    """The last twelve hours. They end with the minute that has begun: its videos count, too."""
    end = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    return {"since": end - timedelta(hours=12), "until": end}


def refund_chosen(page: ModelAdmin, request: HttpRequest, chosen: "QuerySet[GenerationJob]") -> HttpResponse:
    """The same for videos that were chosen in a list."""
    return _decide(page, request, bulk_refunds.not_refunded(chosen), "the chosen videos", selection=chosen)


def _decide(
    page: ModelAdmin,
    request: HttpRequest,
    charged: "QuerySet[GenerationJob]",
    where: str,
    selection: "QuerySet[GenerationJob] | None" = None,
    **window: Any,
) -> HttpResponse:
    plan = bulk_refunds.dry_run(charged)
    left = jobs.refund_limit_left(Actor.of(request))

    def begin(actor: Actor, wish: dict[str, Any]) -> str:
        seen = bulk_refunds.Plan(jobs=wish["jobs"], people=wish["people"], credits=wish["credits"])
        batch = bulk_refunds.start(
            actor=actor, jobs=charged, plan=seen, reason=wish["reason"], once=wish["once"], **window
        )
        return f"{batch.jobs} videos are being refunded, {batch.credits} credits. Everybody is told when it is done."

    lines = [
        f"Charged and not refunded yet on {where}:",
        f"{bulk_refunds.in_words(plan)}.",
    ]
    if left is not None and plan.credits > left:
        lines.append(f"You may refund {left} more credits today: please ask finance or an owner.")
    subject = selection if selection is not None else RefundBatch.objects.none()
    return ask(
        page,
        request,
        subject,
        title="Refund",
        explanation="\n".join(lines),
        act=begin,
        form_class=PlanForm,
        initial={"jobs": plan.jobs, "people": plan.people, "credits": plan.credits},
        back=reverse("admin:generation_refundbatch_changelist"),
    )
