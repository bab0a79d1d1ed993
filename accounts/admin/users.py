"""People, for staff: who they are, what they have, and what may be done about it."""

from typing import Any, ClassVar, cast

from allauth.account.models import EmailAddress
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as PlainUserAdmin
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import Model, QuerySet
from django.forms import model_to_dict
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
)

from accounts import ledger
from accounts.admin.audit_log import acts_on
from accounts.admin.base import WHY, LoggedAdmin, Reasoned, ReasonForm, ask, row, say_why_not
from accounts.admin.ledger import link_to_job
from accounts.models import CreditTransaction, User, UserLimits
from accounts.staff import operations
from accounts.staff.actor import Actor

LATEST = 10
# Who may edit addresses could give somebody else's account one of their own and reset its password.
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


class TermsForm(ReasonForm):
    """Every limit of one person; a field that is left empty is as for everybody."""

    daily_clips = forms.IntegerField(
        label="Videos in 24 hours",
        min_value=0,
        max_value=1_000_000,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    concurrent_jobs = forms.IntegerField(
        label="Videos at the same time",
        min_value=0,
        max_value=1_000_000,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    cooldown_seconds = forms.IntegerField(
        label="Seconds between videos",
        min_value=0,
        max_value=10_000_000,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
    )
    price_factor = forms.DecimalField(
        label="Price factor",
        max_digits=6,
        decimal_places=3,
        required=False,
        validators=[MinValueValidator(0), MaxValueValidator(100)],
        widget=UnfoldAdminDecimalFieldWidget(attrs={"step": "0.001"}),
        help_text="1 is the usual price, 0.5 half of it.",
    )
    field_order = ["daily_clips", "concurrent_jobs", "cooldown_seconds", "price_factor", "reason"]


class NewPasswordForm(Reasoned, AdminPasswordChangeForm):
    """A password that staff set for somebody."""


TERMS = ("daily_clips", "concurrent_jobs", "cooldown_seconds", "price_factor")


@admin.register(User)
class UserAdmin(PlainUserAdmin, LoggedAdmin):  # type: ignore[misc]  # unfold is untyped
    """Nobody is deleted, for the books refer to everybody. Only who may manage staff makes staff or changes what
    staff sign in with, and only superusers touch superusers.
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
    shown = (
        "last_login",
        "date_joined",
        "anonymised_at",
        "wallet",
        "holds",
        "latest_transactions",
        "agreed",
        "standing",
        "acts",
    )
    actions = ("grant_to_all", "adjust_all")
    actions_detail = ("grant_credits", "adjust_credits", "set_limits", "ban", "lift_ban")
    fieldsets = (
        (None, {"fields": ("username", "password", "email", "first_name", "last_name", "standing")}),
        ("Credits", {"fields": ("wallet", "holds", "latest_transactions", "agreed")}),
        ("Rights", {"fields": ("is_staff", "groups", "is_superuser")}),
        ("Dates", {"fields": ("date_joined", "last_login", "anonymised_at")}),
        ("What staff did", {"fields": ("acts",)}),
    )
    add_fieldsets = (*PlainUserAdmin.add_fieldsets, WHY)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Roles are few: each a box to tick."""
        kwargs |= {"widget": UnfoldAdminCheckboxSelectMultipleWidget, "label": "Roles", "help_text": ""}
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    # --- Who may ---

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        fields: tuple[str, ...] = self.shown
        if not Actor.of(request).may("accounts.manage_staff"):
            fields += ("is_staff", "groups")
        return fields if _is_superuser(request) else (*fields, "is_superuser")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if isinstance(obj, User) and not _may_touch(request, obj):
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_grant_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("accounts.grant_credits")

    def has_adjust_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("accounts.adjust_credits")

    def has_limit_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("accounts.limit_user")

    def has_ban_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("accounts.ban_user")

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """What is impossible just now is not offered."""
        user = self.get_object(request, str(object_id))
        idle = {"ban", "lift_ban"} if not isinstance(user, User) or user.anonymised_at else set()
        if isinstance(user, User):
            idle.add("lift_ban" if user.is_active else "ban")
        offered: list[Any] = super().get_actions_detail(request, object_id)
        return [each for each in offered if each.method.original_function_name not in idle]

    # --- What is shown ---

    @display(description="Balance", ordering="credit_account__posted")
    def balance(self, user: User) -> int:
        return user.credit_account.balance

    @display(description="Held", ordering="credit_account__held")
    def held(self, user: User) -> int:
        return user.credit_account.held

    @display(description="Wallet")
    def wallet(self, user: User) -> str:
        account = user.credit_account
        return f"{account.balance} credits free, {account.held} held for videos being made"

    @display(description="Holds")
    def holds(self, user: User) -> SafeString | str:
        """Credits promised to live jobs, job by job."""
        open_holds = user.credit_account.transactions.filter(
            kind=CreditTransaction.Kind.RESERVE, resolutions=None
        )
        lines = [(entry.held_delta, link_to_job(entry)) for entry in open_holds[:LATEST]]
        return format_html("<ul>{}</ul>", format_html_join("", "<li>{} for {}</li>", lines)) if lines else "-"

    @display(description="Latest transactions")
    def latest_transactions(self, user: User) -> SafeString:
        account = user.credit_account
        lines = format_html_join(
            "", "<li>{}</li>", ((_in_one_line(entry),) for entry in account.transactions.all()[:LATEST])
        )
        everything = (
            f"{reverse('admin:accounts_credittransaction_changelist')}?account__id__exact={account.pk}"
        )
        return format_html(
            '<ul>{}</ul><a href="{}" class="text-link">All transactions</a>', lines, everything
        )

    @display(description="Limits")
    def agreed(self, user: User) -> str:
        limits = UserLimits.of(user)
        named = [(field.verbose_name, getattr(limits, field.name)) for field in UserLimits._meta.fields]
        lines = [f"{name}: {value:g}" for name, value in named[2:] if value is not None]
        return ", ".join(lines) or "as for everybody"

    @display(description="Standing")
    def standing(self, user: User) -> str:
        if user.is_active:
            return "may sign in"
        ban = getattr(user, "ban", None)
        if ban is None:
            return "closed by its owner" if user.anonymised_at else "may not sign in"
        return f"banned since {ban.since:%Y-%m-%d %H:%M} by {ban.by}: {ban.reason}"

    @display(description="Log")
    def acts(self, user: User) -> SafeString | str:
        return acts_on(user)

    # --- What is done ---

    @action(description="Grant credits", url_path="grant-credits", permissions=["grant"], icon="add_card")
    def grant_credits(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)
        return self._grant(request, user, [user], f"{user} has {self.wallet(user)}.")

    @admin.action(description="Grant credits to each", permissions=["grant"])
    def grant_to_all(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        return self._grant(request, queryset, list(queryset), _names(queryset))

    @action(description="Adjust balance", url_path="adjust", permissions=["adjust"], icon="exposure")
    def adjust_credits(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)
        return self._adjust(request, user, [user], f"{user} has {self.wallet(user)}.")

    @admin.action(description="Adjust each balance", permissions=["adjust"])
    def adjust_all(self, request: HttpRequest, queryset: QuerySet[User]) -> HttpResponse:
        return self._adjust(request, queryset, list(queryset), _names(queryset))

    @action(description="Limits", url_path="limits", permissions=["limit"], icon="speed")
    def set_limits(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)

        def agree(actor: Actor, wish: dict[str, Any]) -> str:
            wanted = cast(operations.Terms, {name: wish[name] for name in TERMS})
            operations.agree(actor=actor, user=user, terms=wanted, reason=wish["reason"], once=wish["once"])
            return f"The limits of {user} are set ({wish['reason']})."

        return ask(
            self,
            request,
            user,
            title="Set limits",
            explanation=f"What holds for {user} alone. Empty: as for everybody.",
            act=agree,
            form_class=TermsForm,
            initial=model_to_dict(UserLimits.of(user), fields=TERMS),
        )

    @action(description="Ban", url_path="ban", permissions=["ban"], icon="block")
    def ban(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)
        if not user.is_active:
            return say_why_not(self, request, user, f"{user} is banned already.")

        def shut_out(actor: Actor, wish: dict[str, Any]) -> str:
            operations.ban(actor=actor, user=user, **wish)
            return f"{user} is banned ({wish['reason']})."

        explanation = (
            f"{user} is signed out of every door. What is being made is canceled, its credits are released."
        )
        return ask(self, request, user, title="Ban", explanation=explanation, act=shut_out)

    @action(description="Lift the ban", url_path="lift-ban", permissions=["ban"], icon="undo")
    def lift_ban(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)
        if user.is_active:
            return say_why_not(self, request, user, f"{user} is not banned.")

        def let_in(actor: Actor, wish: dict[str, Any]) -> str:
            operations.lift(actor=actor, user=user, **wish)
            return f"{user} may sign in again ({wish['reason']})."

        return ask(self, request, user, title="Lift the ban", explanation=self.standing(user), act=let_in)

    def _grant(
        self, request: HttpRequest, subject: Model | QuerySet[Any], users: list[User], explanation: str
    ) -> HttpResponse:
        def give(actor: Actor, wish: dict[str, Any]) -> str:
            operations.grant(actor=actor, users=users, **wish)
            return f"Gave {_whom(users)} {wish['amount']} credits ({wish['reason']}).{_balance_now(users)}"

        return ask(
            self,
            request,
            subject,
            title="Grant credits",
            explanation=explanation,
            act=give,
            form_class=GrantForm,
        )

    def _adjust(
        self, request: HttpRequest, subject: Model | QuerySet[Any], users: list[User], explanation: str
    ) -> HttpResponse:
        def correct(actor: Actor, wish: dict[str, Any]) -> str:
            operations.adjust(actor=actor, users=users, **wish)
            return f"Adjusted {_whom(users)} by {wish['amount']:+d} ({wish['reason']}).{_balance_now(users)}"

        return ask(
            self,
            request,
            subject,
            title="Adjust balance",
            explanation=explanation,
            act=correct,
            form_class=AdjustForm,
        )


def _is_superuser(request: HttpRequest) -> bool:
    return cast(User, request.user).is_superuser


def _may_touch(request: HttpRequest, user: User) -> bool:
    """Whether the row of `user` may be edited at all; a member of the staff may edit their own."""
    if user.is_superuser and not _is_superuser(request):
        return False
    return not user.is_staff or user == request.user or Actor.of(request).may("accounts.manage_staff")


def _in_one_line(entry: CreditTransaction) -> str:
    day = entry.created_at.strftime("%Y-%m-%d %H:%M")
    return f"{day} · {entry.get_kind_display()} · {entry.amount:+d} → {entry.balance_after} · {entry.reason}"


def _names(users: QuerySet[User]) -> str:
    listed = [user.username for user in users[: LATEST + 1]]
    more = f" and {users.count() - LATEST} more" if len(listed) > LATEST else ""
    return f"To each of {users.count()} users: {', '.join(listed[:LATEST])}{more}."


def _whom(users: list[User]) -> str:
    return str(users[0]) if len(users) == 1 else f"each of {len(users)} users"


def _balance_now(users: list[User]) -> str:
    if len(users) != 1:
        return ""
    return f" The balance is {ledger.open_account(user=users[0]).balance}."
