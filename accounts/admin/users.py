"""Users, for staff: identity, wallet, limits, and the operations on them."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

from allauth.account.models import EmailAddress
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as PlainUserAdmin
from django.db.models import Model, QuerySet
from django.forms import model_to_dict
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
)

from accounts import ledger
from accounts.admin import person, search
from accounts.admin.base import (
    WHY,
    LoggedAdmin,
    Question,
    Reasoned,
    ReasonForm,
    allowed,
    ask,
    does,
    never,
    row_action,
)
from accounts.models import User, UserLimits
from accounts.staff import operations
from accounts.staff.actor import Actor

LATEST = 10
# Staff who can edit addresses could give another account one of their own and reset its password.
admin.site.unregister(EmailAddress)


class GrantForm(ReasonForm):
    amount = forms.IntegerField(min_value=1, max_value=ledger.MAX_GRANT, widget=UnfoldAdminIntegerFieldWidget)
    field_order = ["amount", "reason"]


class AdjustForm(ReasonForm):
    amount = forms.IntegerField(
        min_value=-ledger.MAX_GRANT,
        max_value=ledger.MAX_GRANT,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Less than 0 takes credits away.",
    )
    field_order = ["amount", "reason"]


class LimitsForm(ReasonForm, forms.ModelForm):
    """Every limit of one user; an empty field means the same as for all users."""

    class Meta:
        model = UserLimits
        fields = operations.LIMITS
        labels: ClassVar = {
            "daily_clips": "Videos in 24 hours",
            "concurrent_jobs": "Videos at the same time",
            "cooldown_seconds": "Seconds between videos",
        }
        widgets: ClassVar = {
            "daily_clips": UnfoldAdminIntegerFieldWidget,
            "concurrent_jobs": UnfoldAdminIntegerFieldWidget,
            "cooldown_seconds": UnfoldAdminIntegerFieldWidget,
            "price_factor": UnfoldAdminDecimalFieldWidget(attrs={"step": "0.001"}),
        }


class NewPasswordForm(Reasoned, AdminPasswordChangeForm):
    """A new password that staff set for a user."""


def _for_one(operation: Callable[..., None]) -> Callable[..., int]:
    """Make an operation on many users one on a single user, which returns the new balance."""

    def run(user: User, **values: Any) -> int:
        operation([user], **values)
        return ledger.open_account(user=user).balance

    return run


@admin.register(User)
class UserAdmin(PlainUserAdmin, LoggedAdmin):  # type: ignore[misc]  # unfold is untyped
    """Users are never deleted: ledger entries reference them.

    Only actors who may manage staff make staff or change what staff sign in with; only superusers touch superusers.
    """

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = NewPasswordForm
    change_user_password_template = "admin/change_password.html"  # noqa: S105
    secret_fields = ("password", "password1", "password2")
    list_display = (
        "username",
        "email",
        "balance",
        "held",
        "is_active",
        "is_staff",
        "date_joined",
        "last_login",
    )
    list_select_related = ("credit_account",)
    search_fields: ClassVar[tuple[str, ...]] = ("username", "email", "first_name", "last_name")
    search_help_text = "Name, e-mail address or Telegram id"
    list_filter = ("is_active", "is_staff", "groups")
    shown = ("last_login", "date_joined", "anonymised_at")
    change_form_outer_before_template = "admin/person.html"
    actions = ("grant_to_all", "adjust_all")
    actions_detail = ("grant_credits", "adjust_credits", "set_limits", "ban", "lift_ban")
    fieldsets = (
        ("Account", {"fields": ("username", "password", "email", "first_name", "last_name")}),
        ("Rights", {"fields": ("is_staff", "groups", "is_superuser")}),
        ("Dates", {"fields": ("date_joined", "last_login", "anonymised_at")}),
    )
    add_fieldsets = (*PlainUserAdmin.add_fieldsets, WHY)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Show the roles as check boxes: they are few."""
        kwargs |= {"widget": UnfoldAdminCheckboxSelectMultipleWidget, "label": "Roles", "help_text": ""}
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        return [path("find/", self.admin_site.admin_view(search.page), name="find"), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Put what staff come for above the form."""
        user = self.get_object(request, object_id)
        if user is not None and self.has_view_permission(request, user):
            shown = person.page(user, Actor.of(request)) | {"standing": self.standing(user)}
            extra_context = shown | (extra_context or {})
        return super().change_view(request, object_id, form_url, extra_context)

    # --- Permissions ---

    has_delete_permission = never
    has_grant_permission = allowed("accounts.grant_credits")
    has_adjust_permission = allowed("accounts.adjust_credits")
    has_limit_permission = allowed("accounts.limit_user")
    has_ban_permission = allowed("accounts.ban_user")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        fields: tuple[str, ...] = self.shown
        if obj == request.user or not Actor.of(request).may("accounts.manage_staff"):
            fields += ("is_staff", "groups")
        return fields if cast(User, request.user).is_superuser else (*fields, "is_superuser")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Protect superusers and staff; a member of the staff may edit their own row."""
        actor = Actor.of(request)
        if isinstance(obj, User):
            if obj.is_superuser and not actor.user.is_superuser:
                return False
            if obj.is_staff and obj != actor.user and not actor.may("accounts.manage_staff"):
                return False
        return super().has_change_permission(request, obj)

    # --- Fields ---

    @display(description="Balance", ordering="credit_account__posted")
    def balance(self, user: User) -> int:
        return user.credit_account.balance

    @display(description="Held", ordering="credit_account__held")
    def held(self, user: User) -> int:
        return user.credit_account.held

    def wallet(self, user: User) -> str:
        account = user.credit_account
        return f"{account.balance} credits free, {account.held} held for videos being made"

    def standing(self, user: User) -> str:
        if user.is_active:
            return "may sign in"
        ban = getattr(user, "ban", None)
        if ban is None:
            return "closed by its owner" if user.anonymised_at else "may not sign in"
        return f"banned since {ban.since:%Y-%m-%d %H:%M} by {ban.by}: {ban.reason}"

    # --- Operations ---

    @row_action("Grant credits", "grant", _for_one(operations.grant), icon="add_card", form_class=GrantForm)
    def grant_credits(self, user: User) -> Question:
        done = f"Gave {user} $amount credits ($reason). The balance is $result."
        return f"{user} has {self.wallet(user)}.", done

    @admin.action(description="Grant credits to each", permissions=["grant"])
    def grant_to_all(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponseBase:
        users = list(queryset)
        act = does(operations.grant, users, f"Gave each of {len(users)} users $amount credits ($reason).")
        return ask(self, request, queryset, "Grant credits", _names(users), act, form_class=GrantForm)

    @row_action(
        "Adjust balance",
        "adjust",
        _for_one(operations.adjust),
        icon="exposure",
        url_path="adjust",
        form_class=AdjustForm,
    )
    def adjust_credits(self, user: User) -> Question:
        done = f"Adjusted {user} by $amount ($reason). The balance is $result."
        return f"{user} has {self.wallet(user)}.", done

    @admin.action(description="Adjust each balance", permissions=["adjust"])
    def adjust_all(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponseBase:
        users = list(queryset)
        act = does(operations.adjust, users, f"Adjusted each of {len(users)} users by $amount ($reason).")
        return ask(self, request, queryset, "Adjust balance", _names(users), act, form_class=AdjustForm)

    @row_action(
        "Limits",
        "limit",
        operations.set_limits,
        icon="speed",
        title="Set limits",
        url_path="limits",
        form_class=LimitsForm,
        initial=lambda user: model_to_dict(UserLimits.of(user), fields=operations.LIMITS),
    )
    def set_limits(self, user: User) -> Question:
        explanation = f"What holds for {user} alone. Empty: as for all users."
        return explanation, f"The limits of {user} are set ($reason)."

    @row_action("Ban", "ban", operations.ban, icon="block", why_not=operations.why_not_ban)
    def ban(self, user: User) -> Question:
        explanation = (
            f"{user} is signed out everywhere. Live videos are canceled, their credits are released. "
            "The reason is shown to the user."
        )
        return explanation, f"{user} is banned ($reason)."

    @row_action("Lift the ban", "ban", operations.lift_ban, icon="undo", why_not=operations.why_not_lift_ban)
    def lift_ban(self, user: User) -> Question:
        return self.standing(user), f"{user} may sign in again ($reason)."


def _names(users: list[User]) -> str:
    names = ", ".join(user.username for user in users[:LATEST])
    more = f" and {len(users) - LATEST} more" if len(users) > LATEST else ""
    return f"To each of {len(users)} users: {names}{more}."
