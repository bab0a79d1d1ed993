"""Roles: those that come with the service, and others that an owner makes."""

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as PlainGroupAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest

from accounts.admin_pages import LoggedAdmin
from accounts.staff import roles
from accounts.staff.clerks import Clerk

admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(PlainGroupAdmin, LoggedAdmin):  # type: ignore[misc]  # unfold is untyped
    """As Django has it. What the service ships follows the code; only who may make staff may edit others."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return Clerk.of(request).may("accounts.manage_staff")

    def has_change_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return self._may_touch(request, obj) and super().has_delete_permission(request, obj)

    def _may_touch(self, request: HttpRequest, group: Group | None) -> bool:
        if group is not None and roles.shipped(group.name):
            return False
        return Clerk.of(request).may("accounts.manage_staff")
