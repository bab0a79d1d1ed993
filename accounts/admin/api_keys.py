"""Keys to the API, for staff."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.decorators import action

from accounts.admin_pages import ReadOnlyAdmin, ReasonForm, ask, row, say_why_not
from accounts.models import ApiKey
from accounts.staff import keys
from accounts.staff.clerks import Clerk


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys can be revoked here, and neither read nor made."""

    list_display = ("user", "name", "prefix", "created_at", "last_used_at", "revoked_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "name", "prefix")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    fields = ("user", "name", "prefix", "created_at", "last_used_at", "revoked_at")
    actions_detail = ("revoke",)

    def get_queryset(self, request: HttpRequest) -> "QuerySet[ApiKey]":
        found: QuerySet[ApiKey] = super().get_queryset(request)
        return found.defer("digest")

    def has_revoke_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Clerk.of(request).may("accounts.change_apikey")

    @action(description="Revoke", url_path="revoke", permissions=["revoke"], icon="key_off")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: ApiKey = row(self, request, object_id)
        if key.revoked_at is not None:
            return say_why_not(self, request, key, "This key was revoked before.")

        def refuse_from_now_on(clerk: Clerk, wish: dict[str, Any]) -> str:
            keys.revoke(clerk=clerk, key=key, **wish)
            return f"Revoked the key {key} of {key.user}."

        explanation = (
            f"Programs of {key.user} that use the key {key} are refused from now on. It cannot be undone."
        )
        return ask(
            self,
            request,
            key,
            title="Revoke",
            explanation=explanation,
            act=refuse_from_now_on,
            form_class=ReasonForm,
        )
