"""Bulk refunds, for staff: the total of a bad time of a node or of chosen jobs, then the decision and its progress."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminSplitDateTimeWidget

from accounts.admin.audit_log import LATEST, related_to
from accounts.admin.base import (
    ReadOnlyAdmin,
    ReasonForm,
    allowed,
    ask,
    badge,
    bullets,
    link,
    offered_unless,
    once_a_row,
    row,
    state_now,
)
from accounts.models import User
from accounts.staff.actor import Actor
from generation.models import BulkRefund, BulkRefundItem, GenerationJob, GpuNode
from generation.staff import bulk_refunds, jobs

# Failed refunds on the page of a bulk refund; their number is beside them.
SHOWN = 20


class WindowForm(forms.Form):
    """The node, and the time in which its videos were bad."""

    node = forms.ModelChoiceField(queryset=GpuNode.objects.all(), widget=UnfoldAdminSelectWidget)
    since = forms.SplitDateTimeField(
        label="From",
        widget=UnfoldAdminSplitDateTimeWidget,
        help_text="UTC; what counts is when a video was ready",
    )
    until = forms.SplitDateTimeField(label="Until", widget=UnfoldAdminSplitDateTimeWidget, help_text="UTC")

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        since, until = values.get("since"), values.get("until")
        if since and until and since >= until:
            raise forms.ValidationError("“From” must be before “until”.")
        return values


class TotalForm(ReasonForm):
    """The reason, and the total that the actor read, so that nothing else is carried out."""

    jobs = forms.IntegerField(widget=forms.HiddenInput)
    people = forms.IntegerField(widget=forms.HiddenInput)
    credits = forms.IntegerField(widget=forms.HiddenInput)


@admin.register(BulkRefund)
class BulkRefundAdmin(ReadOnlyAdmin):
    """Bulk refunds with their progress, and the way to a new one."""

    class Media:
        js = ("admin_live.js",)

    list_display = ("created_at", "node", "since", "until", "jobs", "credits", "status", "actor", "reason")
    list_select_related = ("node", "actor")
    list_filter = ("state",)
    actions_list = ("begin",)
    actions_detail = ("again",)
    readonly_fields = ("now", "how_far", "failures")
    fields = (
        "now",
        "how_far",
        "failures",
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
    has_begin_permission = allowed("generation.refund_job")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[BulkRefund]":
        found: QuerySet[BulkRefund] = super().get_queryset(request)
        return found.annotate(failed=Count("items", filter=Q(items__state=BulkRefundItem.State.FAILED)))

    @display(description="State")
    def status(self, batch: Any) -> SafeString:
        if batch.failed:
            return badge(f"{batch.get_state_display()}, {batch.failed} failed", "danger")
        done = batch.state == BulkRefund.State.DONE
        return badge(batch.get_state_display(), "success" if done else "warning")

    @display(description="State")
    def now(self, batch: BulkRefund) -> SafeString:
        return state_now(self.status(batch), moves=batch.state == BulkRefund.State.RUNNING)

    @display(description="Progress")
    def how_far(self, batch: Any) -> SafeString:
        counts = bulk_refunds.progress(batch)
        waiting = counts[BulkRefundItem.State.WAITING]
        return format_html(
            '<progress max="{}" value="{}"></progress> {} refunded, {} waiting, {} passed over (refunded before), '
            "{} failed",
            batch.jobs,
            batch.jobs - waiting - batch.failed,
            counts[BulkRefundItem.State.REFUNDED],
            waiting,
            counts[BulkRefundItem.State.PASSED_OVER],
            batch.failed,
        )

    @display(description="What failed")
    @once_a_row
    def failures(self, batch: BulkRefund) -> SafeString | str:
        lines = (
            format_html(
                "{}: {}", link("generation_generationjob", item.job_id, item.job.public_id), item.note
            )
            for item in bulk_refunds.failed(batch)[:SHOWN]
        )
        return bullets(lines, empty="nothing")

    def get_urls(self) -> list[URLPattern]:
        plan = path("plan/", self.admin_site.admin_view(self.plan), name="generation_bulkrefund_plan")
        return [plan, *super().get_urls()]

    @action(
        description="Refund a bad time of a node", url_path="begin", permissions=["begin"], icon="healing"
    )
    def begin(self, request: HttpRequest) -> HttpResponse:
        """First step: ask for the node (`of` proposes one) and the time, then redirect to `plan`."""
        sent = "node" in request.GET
        # The last twelve hours. They end with the minute that has begun: its videos count, too.
        end = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
        proposed = {"since": end - timedelta(hours=12), "until": end, "node": request.GET.get("of")}
        form = WindowForm(request.GET) if sent else WindowForm(initial=proposed)
        if sent and form.is_valid():
            if bulk_refunds.charged_on(**form.cleaned_data).exists():
                plan = f"{reverse('admin:generation_bulkrefund_plan')}?{request.GET.urlencode()}"
                return HttpResponseRedirect(plan)
            form.add_error(None, "It made no video in that time that is charged and not refunded yet.")
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Refund a bad time of a node",
            "form": form,
        }
        return TemplateResponse(request, "admin/bulk_refund.html", context)

    @action(description="Refund what failed", url_path="again", permissions=["begin"], icon="replay")
    @offered_unless(lambda batch: None if batch.failed else "No refund of these has failed.")
    def again(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Decide again about the refunds that raised an error, once its cause is gone."""
        batch = row(self, request, object_id)
        failed = GenerationJob.objects.filter(pk__in=bulk_refunds.failed(batch).values("job"))
        return _decide(self, request, bulk_refunds.not_refunded(failed), f"what failed of {batch}")

    def plan(self, request: HttpRequest) -> HttpResponseBase:
        """Second step: show the total, ask for the reason, and start the bulk refund."""
        Actor.of(request).must("generation.refund_job")
        form = WindowForm(request.GET)
        if not form.is_valid():
            return HttpResponseRedirect(reverse("admin:generation_bulkrefund_begin"))
        window = form.cleaned_data
        where = f"{window['node']}, {window['since']:%Y-%m-%d %H:%M} to {window['until']:%Y-%m-%d %H:%M} UTC"
        return _decide(self, request, bulk_refunds.charged_on(**window), where, **window)


def refund_chosen(
    page: ModelAdmin, request: HttpRequest, chosen: "QuerySet[GenerationJob]"
) -> HttpResponseBase:
    """Show the second step for videos that were chosen in a list."""
    return _decide(page, request, bulk_refunds.not_refunded(chosen), "the chosen videos", chosen=chosen)


def _decide(
    page: ModelAdmin,
    request: HttpRequest,
    charged: "QuerySet[GenerationJob]",
    where: str,
    chosen: "QuerySet[GenerationJob] | None" = None,
    **window: Any,
) -> HttpResponseBase:
    total = bulk_refunds.total_of(charged)
    left = jobs.refund_limit_left(Actor.of(request))

    def act(actor: Actor, values: dict[str, Any]) -> str:
        read = bulk_refunds.Total(**{name: values.pop(name) for name in ("jobs", "people", "credits")})
        batch = bulk_refunds.start(charged, read, actor=actor, **window, **values)
        return f"{batch.jobs} videos are being refunded, {batch.credits} credits. Each user is notified at the end."

    lines = [f"Charged and not refunded yet on {where}:", f"{total}."]
    if left is not None and total.credits > left:
        lines.append(f"You may refund {left} more alone: this waits until a colleague approves it.")
    return ask(
        page,
        request,
        BulkRefund.objects.none() if chosen is None else chosen,
        "Refund",
        "\n".join(lines),
        act,
        form_class=TotalForm,
        initial={"jobs": total.jobs, "people": total.people, "credits": total.credits},
        back=reverse("admin:generation_bulkrefund_changelist"),
    )


@related_to(User)
def refunds_of_user(user: User) -> Q:
    return _one_of(BulkRefund.objects.filter(items__job__user=user))


@related_to(GenerationJob)
def refunds_of_job(job: GenerationJob) -> Q:
    return _one_of(BulkRefund.objects.filter(items__job=job))


def _one_of(batches: "QuerySet[BulkRefund]") -> Q:
    """Select entries about the latest of these: no page shows more entries than that."""
    latest = batches.order_by("-created_at").values_list("pk", "created_at").distinct()[:LATEST]
    return Q(subject_kind=BulkRefund._meta.label_lower, subject_id__in=[str(pk) for pk, _ in latest])
