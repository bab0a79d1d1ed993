"""GPU nodes, for staff."""

from typing import Any

from asgiref.sync import async_to_sync
from django import forms
from django.contrib import admin
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.admin.audit_log import history_field
from accounts.admin.base import (
    WHY,
    LoggedAdmin,
    Question,
    allowed,
    bullets,
    once_a_row,
    row,
    row_action,
    state_now,
)
from generation.models import CanaryRun, GpuNode, GpuNodeQuerySet
from generation.nodes import NodeError
from generation.nodes.transport import check_host, checked_url
from generation.staff import nodes, stats

CANARIES = 5
# The form of a new node; nothing else is known of it.
NEW = (
    None,
    {"fields": ("name", "base_url", "api_key", "forget_api_key", "protocol", "file_hosts", "cost_per_hour")},
)
# What a node is mended by here.
MENDING = {"base_url", "api_key", "forget_api_key", "protocol", "file_hosts"}
MARKS = {"passed": "✓", "failed": "✗", "running": "…", "waiting": "·"}


class NodeForm(forms.ModelForm):
    """A node, whose key is written and never shown."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        max_length=300,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Never shown, and encrypted in the database. Left empty, the key that is there stays.",
    )
    forget_api_key = forms.BooleanField(
        label="Forget the API key", required=False, help_text="The node wants no key."
    )

    class Meta:
        model = GpuNode
        fields = ("name", "base_url", "api_key", "protocol", "file_hosts", "cost_per_hour")

    def clean_base_url(self) -> str:
        address: str = self.cleaned_data["base_url"].rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise forms.ValidationError("The address must start with http:// or https://")
        if any(mark in address for mark in "?#@"):
            raise forms.ValidationError(
                "The address must have neither a password nor a query: scheme, host and port."
            )
        try:
            async_to_sync(check_host)(checked_url(address).host)
        except NodeError as error:
            raise forms.ValidationError(str(error)) from None
        return address

    def clean_api_key(self) -> str:
        given: str = self.cleaned_data["api_key"]
        return given or self.instance.api_key

    def clean(self) -> dict[str, Any]:
        """Keep a key from another server than it was typed for: it could be read there."""
        values = super().clean() or {}
        if values.get("forget_api_key"):
            values["api_key"] = ""
        elif self.instance.api_key and not self.data.get("api_key") and "base_url" in self.changed_data:
            text = "The address is another one: type the key of the node there, or tick Forget the API key."
            self.add_error("api_key", text)
        return values


@admin.register(GpuNode)
class GpuNodeAdmin(LoggedAdmin):
    """GPU nodes: their health, a test step by step, and their cost."""

    class Media:
        js = ("admin_live.js",)

    form = NodeForm
    secret_fields = ("api_key",)
    history = history_field
    list_display = (
        "name",
        "base_url",
        "enabled",
        "healthy",
        "status",
        "set_aside_reason",
        "backend",
        "speed",
        "last_seen_at",
    )
    list_filter = ("enabled", "status", ("set_aside_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "base_url", "backend")
    actions_detail = ("test", "drain", "enable", "set_aside", "bring_back", "refund_bad_time")
    heard = (
        "healthy",
        "status",
        "status_detail",
        "backend",
        "detected_protocol",
        "served_sizes",
        "capacity",
        "speed",
        "last_seen_at",
        "leave_alone_until",
        "consecutive_failures",
        "set_aside_at",
        "set_aside_reason",
        "failed_canaries",
        "next_canary_at",
        "from_environment",
    )
    added_up = ("standing", "key", "enabled", "last_test", "canaries", "account", "history")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "standing",
                    "name",
                    "base_url",
                    "key",
                    "api_key",
                    "forget_api_key",
                    "protocol",
                    "file_hosts",
                    "cost_per_hour",
                    "enabled",
                )
            },
        ),
        ("Does it work?", {"fields": ("last_test", "canaries")}),
        ("The last 30 days", {"fields": ("account",)}),
        ("What was last heard of it", {"fields": heard}),
        ("What staff did", {"fields": ("history",)}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Protect the address of the environment's node, which follows VIDEO_API_URL."""
        fields = (*self.heard, *self.added_up)
        return (*fields, "base_url") if obj is not None and obj.from_environment else fields

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fieldsets(request, obj) if obj is not None else [NEW, WHY]

    def save_model(self, request: HttpRequest, obj: GpuNode, form: Any, change: bool) -> None:
        """Store it; a node that is set aside is tried at once when something was changed that may have mended it."""
        if obj.next_canary_at is not None and MENDING & set(form.changed_data):
            obj.next_canary_at, obj.failed_canaries = Now(), 0
        if "base_url" in form.changed_data:
            # Another server, perhaps of another protocol.
            obj.detected_protocol, obj.status, obj.last_seen_at = "", "unknown", None
        super().save_model(request, obj, form, change)

    # --- Fields ---

    def get_queryset(self, request: HttpRequest) -> GpuNodeQuerySet:
        return super().get_queryset(request).with_health()  # type: ignore[no-any-return]  # by the model's own manager

    @display(description="Key")
    def key(self, node: GpuNode) -> str:
        return "set" if node.api_key else "not set"

    @display(description="Seconds a step", ordering="seconds_per_step")
    def speed(self, node: GpuNode) -> str:
        return "not measured" if node.seconds_per_step is None else f"{node.seconds_per_step:.2f}"

    @display(description="Sizes")
    def served_sizes(self, node: GpuNode) -> str:
        return ", ".join(str(size).replace("x", "×") for size in node.sizes) or "not said"

    @display(description="Healthy", boolean=True)
    def healthy(self, node: Any) -> bool:
        return bool(node.is_healthy)

    @display(description="Standing")
    def standing(self, node: GpuNode) -> str:
        """Say that it gets jobs, or the reason why not."""
        if node.set_aside_at is not None:
            return f"set aside since {node.set_aside_at:%Y-%m-%d %H:%M}: {node.set_aside_reason}"
        if not node.enabled:
            return "drained: it finishes what it has and gets nothing new"
        return (
            "gets jobs" if self.healthy(node) else "gets no jobs: it does not answer, or says that it cannot"
        )

    @display(description="Last test")
    @once_a_row
    def last_test(self, node: GpuNode) -> SafeString | str:
        last = node.canary_runs.filter(kind=CanaryRun.Kind.TEST).first()
        if last is None:
            return "never tested from here"
        steps = bullets(f"{MARKS[step['state']]} {step['name']} {step['words']}" for step in last.steps)
        text = f"{last.began_at:%Y-%m-%d %H:%M} by {last.asked_by}"
        return format_html("<p>{}</p>{}", state_now(text, moves=last.passed is None), steps)

    @display(description="Canary clips while it was set aside")
    @once_a_row
    def canaries(self, node: GpuNode) -> SafeString | str:
        latest = node.canary_runs.filter(kind=CanaryRun.Kind.CANARY)[:CANARIES]
        lines = (
            f"{each.began_at:%Y-%m-%d %H:%M} {MARKS['passed' if each.passed else 'failed']} {each.steps[0]['words']}"
            for each in latest
        )
        return bullets(lines, empty="none")

    @display(description="What it did and cost")
    @once_a_row
    def account(self, node: GpuNode) -> SafeString | str:
        """Show clips, hours, cost and refunds. A clip costs the hours that the node worked, also on failed attempts."""
        found = stats.of_node(node)
        worked = f"{found.hours:.1f} hours" if found.hours >= 1 else f"{60 * found.hours:.1f} minutes"
        cost, rate = "Cost per finished clip: give the cost per hour", "Refund rate: no clip was charged"
        if found.cost_per_clip is not None:
            cost = f"{found.cost_per_clip} per finished clip"
        if found.refund_rate is not None:
            rate = f"{100 * found.refund_rate:.1f} % of the clips refunded"
        return bullets([f"{found.clips} clips in {worked} of work", cost, rate])

    # --- Operations ---

    has_manage_permission = allowed("generation.change_gpunode")
    has_refund_permission = allowed("generation.refund_job")

    @row_action(
        "Test",
        "manage",
        nodes.start_test,
        icon="network_check",
        initial=lambda node: {"reason": "Does it work?"},
    )
    def test(self, node: GpuNode) -> Question:
        return (
            f"{node} is asked how it is and makes a clip that no job asked for, which is fetched and played.",
            f"{node} is being tested ($reason). The steps appear here as they are made.",
        )

    @row_action("Drain", "manage", nodes.drain, icon="do_not_disturb_on", why_not=nodes.why_not_drain)
    def drain(self, node: GpuNode) -> Question:
        return (
            f"{node}: It finishes what it has and gets nothing new, until it is enabled again.",
            f"{node} is drained ($reason).",
        )

    @row_action("Enable", "manage", nodes.enable, icon="play_circle", why_not=nodes.why_not_enable)
    def enable(self, node: GpuNode) -> Question:
        return f"{node}: It gets jobs again.", f"{node} gets jobs ($reason)."

    @row_action("Set aside", "manage", nodes.set_aside, icon="front_hand")
    def set_aside(self, node: GpuNode) -> Question:
        return (
            f"{node}: It gets no jobs until staff bring it back; no canary clip does so by itself.",
            f"{node} is set aside ($reason).",
        )

    @row_action("Bring back", "manage", nodes.bring_back, icon="undo", why_not=nodes.why_not_bring_back)
    def bring_back(self, node: GpuNode) -> Question:
        return (
            f"{node}: It gets jobs again with a clean record, without a canary clip.",
            f"{node} is back ($reason).",
        )

    @action(description="Refund a bad time", url_path="refund", permissions=["refund"], icon="healing")
    def refund_bad_time(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Redirect to the page of bulk refunds, which asks for the time."""
        node: GpuNode = row(self, request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:generation_bulkrefund_begin')}?of={node.pk}")
