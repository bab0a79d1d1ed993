"""Staff pages: people on Telegram, updates, deliveries, requests to join, credit packs and payments."""

from datetime import timedelta

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse
from unfold.decorators import display

from accounts import merging
from accounts.admin.audit_log import history_field
from accounts.admin.base import LoggedAdmin, Question, ReadOnlyAdmin, allowed, ask_about_each, row_action
from accounts.admin.users import UserAdmin
from accounts.models import WalletMerge
from generation.staff import home
from telegram_bot import admin_person, refunds, staff
from telegram_bot.models import (
    ChatNotice,
    CreditPack,
    JobMessage,
    LinkRequest,
    StarPayment,
    TelegramAccount,
    TelegramUpdate,
)


@admin.register(CreditPack)
class CreditPackAdmin(LoggedAdmin):
    """Packs for sale. A change holds from the next invoice on; older ones are refused at the checkout."""

    list_display = ("name", "credits", "stars", "credits_per_star", "for_sale", "position")
    list_editable = ("credits", "stars", "for_sale", "position")  # without a page for each
    list_filter = ("for_sale",)
    search_fields = ("name",)
    fields = ("name", "credits", "stars", "for_sale", "position", "history")
    history = history_field
    readonly_fields = ("history",)

    @display(description="Credits a Star")
    def credits_per_star(self, pack: CreditPack) -> str:
        return f"{pack.credits / pack.stars:.2f}"


@admin.register(StarPayment)
class StarPaymentAdmin(ReadOnlyAdmin):
    """Payments in Stars. A refund takes the credits first, and gives them back if Telegram definitely refuses."""

    list_display = ("id", "paid_at", "user", "telegram_id", "stars", "bought", "state", "attempts", "error")
    list_select_related = ("user", "purchase")
    list_filter = ("state", "paid_at")
    search_fields = ("=charge_id", "=telegram_id", "user__username")
    date_hierarchy = "paid_at"
    actions_detail = ("refund",)
    has_refund_permission = allowed("telegram_bot.refund_starpayment")

    @display(description="Credits")
    def bought(self, payment: StarPayment) -> int:
        return payment.purchase.posted_delta if payment.purchase else 0

    @row_action("Refund", "refund", staff.refund_payment, icon="undo", why_not=refunds.why_not)
    def refund(self, payment: StarPayment) -> Question:
        done = f"{self.bought(payment)} credits are taken back; Telegram is asked to refund {payment.stars} Stars."
        explanation = (
            f"{self.bought(payment)} credits of {payment.user} are taken back at once, then Telegram gives "
            f"{payment.stars} Stars back to {payment.telegram_id}. If it refuses, the credits are given back."
        )
        return explanation, done


@admin.register(TelegramAccount)
class TelegramAccountAdmin(ReadOnlyAdmin):
    list_display = (
        "telegram_id", "username", "first_name", "user", "former_user", "blocked_at", "last_seen_at",
    )  # fmt: skip
    list_select_related = ("user", "former_user")
    search_fields = ("=telegram_id", "username", "first_name", "user__username")
    list_filter = (("blocked_at", admin.EmptyFieldListFilter), "language_code")


@admin.register(TelegramUpdate)
class TelegramUpdateAdmin(ReadOnlyAdmin):
    private = True
    list_display = ("update_id", "state", "received_at", "settled_at", "error")
    list_filter = ("state", "received_at")
    search_fields = ("=update_id", "error")
    actions = ("handle_again",)
    has_again_permission = allowed("telegram_bot.change_telegramupdate")

    @admin.action(description="Handle again what could not be handled", permissions=["again"])
    def handle_again(self, request: HttpRequest, queryset: "QuerySet[TelegramUpdate]") -> HttpResponseBase:
        return ask_about_each(self, request, queryset, title="Handle again", do=staff.handle_again)


@admin.register(JobMessage)
class JobMessageAdmin(ReadOnlyAdmin):
    list_display = ("job", "chat_id", "state", "attempts", "next_attempt_at", "sent_at", "error")
    list_select_related = ("job",)
    list_filter = ("state",)
    search_fields = ("=chat_id", "=job__id", "error")
    actions = ("deliver_again",)
    has_again_permission = allowed("telegram_bot.change_jobmessage")

    def response_action(
        self, request: HttpRequest, queryset: "QuerySet[JobMessage]"
    ) -> HttpResponseBase | None:
        """Refuse a selection that is no number, which Django lets through to the database."""
        try:
            response: HttpResponseBase | None = super().response_action(request, queryset)
            return response
        except ValueError:
            self.message_user(request, "There are no such rows.", messages.ERROR)
            return None

    @admin.action(description="Try to deliver again what could not be delivered", permissions=["again"])
    def deliver_again(self, request: HttpRequest, queryset: "QuerySet[JobMessage]") -> HttpResponseBase:
        return ask_about_each(self, request, queryset, title="Deliver again", do=staff.deliver_again)


@home.add_stat
def failed_deliveries() -> home.Stat:
    """Count the results of the last day that Telegram never took."""
    since = Now() - timedelta(days=1)
    failed = JobMessage.objects.filter(state=JobMessage.State.FAILED, created_at__gt=since).count()
    page = reverse("admin:telegram_bot_jobmessage_changelist")
    href = f"{page}?state__exact={JobMessage.State.FAILED}"
    return home.Stat("Failed deliveries", str(failed), href, "of 24 hours", alarm=bool(failed))


__all__ = ["admin_person"]  # loaded with the pages
# A person may be known to staff by their name on Telegram alone.
UserAdmin.search_fields = (
    *UserAdmin.search_fields,
    "=telegram_account__telegram_id",
    "telegram_account__username",
)


@admin.register(ChatNotice)
class NoticeAdmin(ReadOnlyAdmin):
    private = True
    list_display = ("id", "chat_id", "state", "attempts", "created_at", "sent_at", "error")
    list_filter = ("state", "created_at")
    search_fields = ("=chat_id", "text", "error")
    exclude = ("keyboard", "bot_id")


@admin.register(LinkRequest)
class LinkRequestAdmin(ReadOnlyAdmin):
    """Requests to join an account on the web with a person on Telegram."""

    list_display = ("id", "began_on", "user", "account", "state", "created_at", "answered_at", "settled_at")
    list_select_related = ("user", "account")
    list_filter = ("state", "began_on", "created_at")
    search_fields = ("user__username", "=account__telegram_id", "account__username")
    exclude = ("digest",)


@admin.register(WalletMerge)
class WalletMergeAdmin(ReadOnlyAdmin):
    """Accounts that became one. A mistake is undone by entries of its own; nothing is rewritten."""

    list_display = ("id", "source", "target", "moved", "stayed", "made_at", "actor", "undone_at", "undone_by")
    list_select_related = ("source__user", "target__user", "actor", "undone_by")
    list_filter = ("made_at", ("undone_at", admin.EmptyFieldListFilter))
    search_fields = ("source__user__username", "target__user__username", "reason")
    actions_detail = ("undo",)
    has_undo_permission = allowed("accounts.undo_walletmerge")

    @row_action(
        "Undo",
        "undo",
        staff.undo_merge,
        icon="undo",
        why_not=lambda merge: "This merge was undone before." if merge.undone_at else None,
    )
    def undo(self, merge: WalletMerge) -> Question:
        explanation = (
            f"{merging.net_moved(merge)} credits go back from {merge.target.user} to {merge.source.user}, "
            f"and so do the videos that {merge.source.user} paid for. Their Telegram is their own again."
        )
        return explanation, f"Undid the merge of {merge} ($reason)."
