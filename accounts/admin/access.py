"""Roles: those that come with the service, and others that an owner makes."""

from typing import Any

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as PlainGroupAdmin
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from unfold.decorators import action

from accounts import api_keys
from accounts.admin.base import LoggedAdmin, ReadOnlyAdmin, ReasonForm, ask, row, say_why_not
from accounts.models import ApiKey
from accounts.staff import roles
from accounts.staff.actor import Actor


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
        return Actor.of(request).may("accounts.change_apikey")

    @action(description="Revoke", url_path="revoke", permissions=["revoke"], icon="key_off")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: ApiKey = row(self, request, object_id)
        if key.revoked_at is not None:
            return say_why_not(self, request, key, "This key was revoked before.")

        def refuse_from_now_on(actor: Actor, wish: dict[str, Any]) -> str:
            api_keys.revoke_by_staff(actor=actor, key=key, **wish)
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


# Second steps and passkeys, for staff who help somebody who lost their phone.


admin.site.unregister(UserSession)
admin.site.unregister(Authenticator)


@admin.register(Authenticator)
class AuthenticatorAdmin(LoggedAdmin):
    """Superusers remove those of somebody who lost their phone; nobody sees the secrets."""

    list_display = ("user", "type", "created_at", "last_used_at")
    list_filter = ("type",)
    search_fields = ("user__username", "user__email")
    fields = list_display
    readonly_fields = list_display

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return Actor.of(request).user.is_superuser


# Keys to the API, for staff.


admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(PlainGroupAdmin, LoggedAdmin):  # type: ignore[misc]  # unfold is untyped
    """As Django has it. What the service ships follows the code; only who may make staff may edit others."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return Actor.of(request).may("accounts.manage_staff")

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_delete_permission(request, obj)

    def _may_touch(self, request: HttpRequest, group: Group | None) -> bool:
        if group is not None and roles.shipped(group.name):
            return False
        return Actor.of(request).may("accounts.manage_staff")
