"""GPU nodes, for staff."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.decorators import display
from unfold.widgets import UnfoldAdminPasswordWidget

from accounts.admin_pages import LoggedAdmin
from generation import breaker
from generation.models import GpuNode


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
