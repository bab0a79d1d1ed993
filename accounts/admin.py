"""People, their credits and their keys, for staff."""

from typing import Any, cast

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as PlainGroupAdmin
from django.contrib.auth.admin import UserAdmin as PlainUserAdmin
from django.contrib.auth.models import Group
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from accounts import api_keys, ledger
from accounts.admin_pages import ReadOnlyAdmin, ReasonForm, Refused, ask, row, say_why_not
from accounts.errors import LedgerError
from accounts.models import ApiKey, CreditTransaction, User

LATEST = 10

admin.site.unregister(Group)
# Who may edit addresses could give somebody else's account one of their own and reset its password.
admin.site.unregister(EmailAddress)
admin.site.unregister(UserSession)
admin.site.unregister(Authenticator)


@admin.register(Group)
class GroupAdmin(PlainGroupAdmin, ModelAdmin):
    """As Django has it, in the look of the rest."""


@admin.register(Authenticator)
class AuthenticatorAdmin(ModelAdmin):
    """Second steps and passkeys. Superusers remove those of somebody who lost their phone; nobody sees the secrets."""

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
        return _is_superuser(request)


class GrantForm(ReasonForm):
    amount = forms.IntegerField(min_value=1, max_value=ledger.MAX_GRANT, widget=UnfoldAdminIntegerFieldWidget)
    field_order = ["amount", "reason"]


@admin.register(User)
class UserAdmin(PlainUserAdmin, ModelAdmin):
    """Nobody is deleted, for the books refer to everybody: to ban somebody, take `active` away, which also cancels
    what is being made for them. Only superusers make staff, or touch other superusers.
    """

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "balance", "is_active", "is_staff", "date_joined", "last_login")
    list_select_related = ("credit_account",)
    search_fields = ("username", "email", "first_name", "last_name")
    list_filter = ("is_active", "is_staff", "is_superuser", "date_joined")
    readonly_fields = ("last_login", "date_joined", "anonymised_at", "wallet", "latest_transactions")
    actions_detail = ("grant_credits",)
    fieldsets = (
        (None, {"fields": ("username", "password", "email", "first_name", "last_name")}),
        ("Credits", {"fields": ("wallet", "latest_transactions")}),
        (
            "Rights",
            {
                "fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions"),
                "description": "Without “active” nobody can sign in, and what is being made for them is canceled.",
            },
        ),
        ("Dates", {"fields": ("date_joined", "last_login", "anonymised_at")}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        rights = ("is_staff", "is_superuser", "groups", "user_permissions")
        return self.readonly_fields if _is_superuser(request) else self.readonly_fields + rights

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if isinstance(obj, User) and obj.is_superuser and not _is_superuser(request):
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_grant_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return cast(User, request.user).has_perm("accounts.add_credittransaction")

    @display(description="Balance", ordering="credit_account__posted")
    def balance(self, user: User) -> int:
        return user.credit_account.balance

    @display(description="Wallet")
    def wallet(self, user: User) -> str:
        account = user.credit_account
        return f"{account.balance} credits free, {account.held} held for videos being made"

    @display(description="Latest transactions")
    def latest_transactions(self, user: User) -> SafeString:
        account = user.credit_account
        lines = format_html_join(
            "", "<li>{}</li>", ((_in_one_line(entry),) for entry in account.transactions.all()[:LATEST])
        )
        everything = (
            f"{reverse('admin:accounts_credittransaction_changelist')}?account__id__exact={account.pk}"
        )
        return format_html('<ul>{}</ul><a href="{}">All transactions</a>', lines, everything)

    @action(description="Grant credits", url_path="grant-credits", permissions=["grant"], icon="add_card")
    def grant_credits(self, request: HttpRequest, object_id: str) -> HttpResponse:
        user: User = row(self, request, object_id)

        def give(wish: dict[str, Any]) -> str:
            try:
                entry = ledger.grant(
                    user=user, amount=wish["amount"], reason=wish["reason"], actor=cast(User, request.user)
                )
            except LedgerError as error:
                raise Refused(str(error)) from error
            return f"Gave {user} {wish['amount']} credits ({wish['reason']}). The balance is {entry.balance_after}."

        explanation = f"{user} has {self.wallet(user)}."
        return ask(
            self,
            request,
            user,
            title="Grant credits",
            explanation=explanation,
            act=give,
            form_class=GrantForm,
        )


@admin.register(CreditTransaction)
class CreditTransactionAdmin(ReadOnlyAdmin):
    """The ledger. Entries are never changed; a mistake is corrected by another entry."""

    list_display = ("id", "created_at", "owner", "kind", "amount", "balance_after", "reason", "actor")
    list_select_related = ("account__user", "actor")
    search_fields = ("account__user__username", "reason", "reference", "external_id")
    list_filter = ("kind", "created_at")
    date_hierarchy = "created_at"
    fields = (
        "id",
        "created_at",
        "owner",
        "kind",
        "amount",
        "posted_delta",
        "held_delta",
        "posted_after",
        "held_after",
        "reason",
        "actor",
        "job",
        "resolves",
        "counterpart",
        "external_id",
    )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "account__id__exact" or super().lookup_allowed(lookup, value, request)

    @display(description="User", ordering="account__user__username")
    def owner(self, entry: CreditTransaction) -> SafeString:
        user = entry.account.user
        return format_html('<a href="{}">{}</a>', reverse("admin:accounts_user_change", args=[user.pk]), user)

    @display(description="Amount")
    def amount(self, entry: CreditTransaction) -> str:
        return f"{entry.amount:+d}"

    @display(description="Balance after")
    def balance_after(self, entry: CreditTransaction) -> int:
        return entry.balance_after

    @display(description="Job")
    def job(self, entry: CreditTransaction) -> SafeString | str:
        """What the reference names is another app's; where that has a page, link to it."""
        if entry.reference is None or entry.kind == CreditTransaction.Kind.TRANSFER:
            return "-"
        try:
            page = reverse("admin:generation_generationjob_change", args=[entry.reference])
        except NoReverseMatch:
            return entry.reference.hex
        return format_html('<a href="{}">{}</a>', page, entry.reference.hex)


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
        keys: QuerySet[ApiKey] = super().get_queryset(request)
        return keys.defer("digest")

    def has_revoke_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return cast(User, request.user).has_perm("accounts.change_apikey")

    @action(description="Revoke", url_path="revoke", permissions=["revoke"], icon="key_off")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: ApiKey = row(self, request, object_id)
        if key.revoked_at is not None:
            return say_why_not(self, request, key, "This key was revoked before.")

        def refuse_from_now_on(_: dict[str, Any]) -> str:
            api_keys.revoke(key=key)
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
            form_class=forms.Form,
        )


def _is_superuser(request: HttpRequest) -> bool:
    return cast(User, request.user).is_superuser


def _in_one_line(entry: CreditTransaction) -> str:
    day = entry.created_at.strftime("%Y-%m-%d %H:%M")
    return f"{day} · {entry.get_kind_display()} · {entry.amount:+d} → {entry.balance_after} · {entry.reason}"
