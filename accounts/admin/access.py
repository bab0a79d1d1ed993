"""API keys, second factors and groups, for staff."""

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as PlainGroupAdmin
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from accounts import api_keys
from accounts.admin.base import LoggedAdmin, Question, ReadOnlyAdmin, allowed, never, row_action
from accounts.models import ApiKey
from accounts.staff import roles
from accounts.staff.actor import Actor

for replaced in (Authenticator, Group, UserSession):
    admin.site.unregister(replaced)


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """API keys, which staff can revoke, and neither read nor make."""

    list_display = ("user", "name", "prefix", "created_at", "last_used_at", "revoked_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "name", "prefix")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    fields = list_display
    actions_detail = ("revoke",)
    has_revoke_permission = allowed("accounts.change_apikey")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[ApiKey]":
        found: QuerySet[ApiKey] = super().get_queryset(request)
        return found.defer("digest")

    @row_action("Revoke", "revoke", api_keys.revoke_by_staff, icon="key_off", why_not=api_keys.why_not_revoke)
    def revoke(self, key: ApiKey) -> Question:
        explanation = (
            f"Programs of {key.user} that use the key {key} are refused from now on. It cannot be undone."
        )
        return explanation, f"Revoked the key {key} of {key.user}."


@admin.register(Authenticator)
class AuthenticatorAdmin(LoggedAdmin):
    """Second factors and passkeys. Superusers remove them for users who lost their phone; the secrets are not shown."""

    list_display = ("user", "type", "created_at", "last_used_at")
    list_filter = ("type",)
    search_fields = ("user__username", "user__email")
    fields = list_display
    readonly_fields = list_display
    has_add_permission = has_change_permission = never

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return Actor.of(request).user.is_superuser


@admin.register(Group)
class GroupAdmin(PlainGroupAdmin, LoggedAdmin):  # type: ignore[misc]  # unfold is untyped
    """Roles. The shipped ones follow the code; only actors who may manage staff edit others."""

    has_add_permission = allowed("accounts.manage_staff")

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_delete_permission(request, obj)

    def _may_touch(self, request: HttpRequest, group: Group | None) -> bool:
        if group is not None and roles.shipped(group.name):
            return False
        actor = Actor.of(request)
        own = group is not None and actor.user.groups.contains(group)
        return actor.may("accounts.manage_staff") and not own
