"""GPU nodes, for staff."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.admin.audit_log import acts_on
from accounts.admin.base import WHY, LoggedAdmin, ask, found_once, row, state_now
from accounts.staff.actor import Actor
from generation.models import GpuNode, GpuNodeQuerySet, NodeTrial
from generation.staff import nodes

TRIALS = 5
# Of a node that is not there yet nothing else is known.
NEW = (None, {"fields": ("name", "base_url", "api_key", "forget_api_key", "protocol", "cost_per_hour")})
MARKS = {"passed": "✓", "failed": "✗", "running": "…", "waiting": "·"}


class NodeForm(forms.ModelForm):
    """The key goes in and never comes out."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        max_length=300,
        strip=True,
        widget=UnfoldAdminPasswordWidget(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Never shown, and encrypted in the database. Left empty, the key that is there stays.",
    )
    forget_api_key = forms.BooleanField(required=False, help_text="The node wants no key.")

    class Meta:
        model = GpuNode
        fields = ("name", "base_url", "api_key", "protocol", "cost_per_hour")

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
    """Where clips are made: what is heard of each, a test step by step, and what it costs."""

    class Media:
        js = ("admin_live.js",)

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
        "sizes",
        "capacity",
        "speed",
        "last_seen_at",
        "leave_alone_until",
        "consecutive_failures",
        "set_aside_at",
        "set_aside_reason",
        "trials",
        "next_trial_at",
        "from_environment",
    )
    added_up = ("standing", "enabled", "last_test", "canaries", "account", "acts")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "standing",
                    "name",
                    "base_url",
                    "api_key",
                    "forget_api_key",
                    "protocol",
                    "cost_per_hour",
                    "enabled",
                )
            },
        ),
        ("Does it work?", {"fields": ("last_test", "canaries")}),
        ("The last 30 days", {"fields": ("account",)}),
        ("What was last heard of it", {"fields": heard}),
        ("What staff did", {"fields": ("acts",)}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """The address of the environment's node follows VIDEO_API_URL."""
        fields = (*self.heard, *self.added_up)
        return (*fields, "base_url") if obj is not None and obj.from_environment else fields

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fieldsets(request, obj) if obj is not None else [NEW, WHY]

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """What is impossible just now is not offered."""
        node = self.get_object(request, str(object_id))
        idle: set[str] = set()
        if isinstance(node, GpuNode):
            idle = {"enable" if node.enabled else "drain", "bring_back" if node.set_aside_at is None else ""}
        offered: list[Any] = super().get_actions_detail(request, object_id)
        return [each for each in offered if each.method.original_function_name not in idle]

    # --- What is shown ---

    def get_queryset(self, request: HttpRequest) -> GpuNodeQuerySet:
        return super().get_queryset(request).with_health()  # type: ignore[no-any-return]  # by the model's own manager

    @display(description="Seconds a step", ordering="seconds_per_step")
    def speed(self, node: GpuNode) -> str:
        return "-" if node.seconds_per_step is None else f"{node.seconds_per_step:.2f}"

    @display(description="Healthy", boolean=True)
    def healthy(self, node: Any) -> bool:
        return bool(node.is_healthy)

    @display(description="Standing")
    def standing(self, node: GpuNode) -> str:
        """Whether it gets jobs, and if not, why."""
        if node.set_aside_at is not None:
            return f"set aside since {node.set_aside_at:%Y-%m-%d %H:%M}: {node.set_aside_reason}"
        if not node.enabled:
            return "drained: it finishes what it has and gets nothing new"
        return (
            "gets jobs" if self.healthy(node) else "gets no jobs: it does not answer, or says that it cannot"
        )

    @display(description="Last test")
    @found_once
    def last_test(self, node: GpuNode) -> SafeString | str:
        last = node.tried.filter(kind=NodeTrial.Kind.TEST).first()
        if last is None:
            return "never tested from here"
        lines = ((MARKS[step["state"]], step["name"], step["words"]) for step in last.steps)
        steps = format_html_join("", "<li>{} {} {}</li>", lines)
        words = f"{_when(last)} by {last.asked_by}"
        return format_html("<p>{}</p><ul>{}</ul>", state_now(words, moves=last.passed is None), steps)

    @display(description="Trial clips while it was set aside")
    @found_once
    def canaries(self, node: GpuNode) -> SafeString | str:
        latest = node.tried.filter(kind=NodeTrial.Kind.CANARY)[:TRIALS]
        lines = [
            (_when(each), MARKS["passed" if each.passed else "failed"], each.steps[0]["words"])
            for each in latest
        ]
        return (
            format_html("<ul>{}</ul>", format_html_join("", "<li>{} {} {}</li>", lines)) if lines else "none"
        )

    @display(description="What it did and cost")
    @found_once
    def account(self, node: GpuNode) -> SafeString:
        """A clip costs the hours that the node worked, those that came to nothing included."""
        account = nodes.account(node)
        worked = f"{account.hours:.1f} hours" if account.hours >= 1 else f"{60 * account.hours:.1f} minutes"
        cost, rate = account.cost_per_clip, account.refund_rate
        lines = [
            f"{account.clips} clips in {worked} of work",
            f"{cost} per finished clip"
            if cost is not None
            else "Cost per finished clip: give the cost per hour",
            f"{100 * rate:.1f} % of the clips refunded"
            if rate is not None
            else "Refund rate: no clip was charged",
        ]
        return format_html("<ul>{}</ul>", format_html_join("", "<li>{}</li>", ((line,) for line in lines)))

    @display(description="Log")
    @found_once
    def acts(self, node: GpuNode) -> SafeString | str:
        return acts_on(node)

    # --- What is done ---

    def has_manage_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.change_gpunode")

    def has_refund_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("generation.refund_job")

    @action(description="Test", url_path="test", permissions=["manage"], icon="network_check")
    def test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        node: GpuNode = row(self, request, object_id)

        def begin(actor: Actor, wish: dict[str, Any]) -> str:
            nodes.start(actor=actor, node=node, **wish)
            return f"{node} is being tested ({wish['reason']}). The steps appear here as they are made."

        explanation = (
            f"{node} is asked how it is and makes a clip that no job asked for, which is fetched and played."
        )
        usual = {"reason": "Does it work?"}
        return ask(self, request, node, title="Test", explanation=explanation, act=begin, initial=usual)

    @action(description="Drain", url_path="drain", permissions=["manage"], icon="do_not_disturb_on")
    def drain(self, request: HttpRequest, object_id: str) -> HttpResponse:
        explanation = "It finishes what it has and gets nothing new, until it is enabled again."
        return self._ask(request, object_id, "Drain", explanation, nodes.switch, "is drained", on=False)

    @action(description="Enable", url_path="enable", permissions=["manage"], icon="play_circle")
    def enable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._ask(
            request, object_id, "Enable", "It gets jobs again.", nodes.switch, "gets jobs", on=True
        )

    @action(description="Set aside", url_path="set-aside", permissions=["manage"], icon="front_hand")
    def set_aside(self, request: HttpRequest, object_id: str) -> HttpResponse:
        explanation = "It gets no jobs until somebody brings it back; no trial clip does so by itself."
        return self._ask(request, object_id, "Set aside", explanation, nodes.set_aside, "is set aside")

    @action(description="Bring back", url_path="bring-back", permissions=["manage"], icon="undo")
    def bring_back(self, request: HttpRequest, object_id: str) -> HttpResponse:
        explanation = "It gets jobs again with a clean record, without a trial clip."
        return self._ask(request, object_id, "Bring back", explanation, nodes.bring_back, "is back")

    @action(description="Refund a bad time", url_path="refund", permissions=["refund"], icon="healing")
    def refund_bad_time(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """On to the incident desk, which asks when it was."""
        node: GpuNode = row(self, request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:generation_refundbatch_begin')}?of={node.pk}")

    def _ask(
        self,
        request: HttpRequest,
        object_id: str,
        title: str,
        explanation: str,
        operation: Callable[..., None],
        done: str,
        **fixed: Any,
    ) -> HttpResponse:
        node: GpuNode = row(self, request, object_id)

        def act(actor: Actor, wish: dict[str, Any]) -> str:
            operation(actor=actor, node=node, **fixed, **wish)
            return f"{node} {done} ({wish['reason']})."

        return ask(self, request, node, title=title, explanation=f"{node}: {explanation}", act=act)


def _when(tried: NodeTrial) -> str:
    return f"{tried.began_at:%Y-%m-%d %H:%M}"
