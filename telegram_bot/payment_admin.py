"""For staff: what is for sale for Stars, and what was paid."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString
from unfold.decorators import action, display

from accounts.admin.acts import acts_on
from accounts.admin_pages import LoggedAdmin, ReadOnlyAdmin, ask, row, say_why_not
from accounts.staff.clerks import Clerk
from telegram_bot import refunds, staff
from telegram_bot.models import CreditPack, StarPayment


@admin.register(CreditPack)
class CreditPackAdmin(LoggedAdmin):
    """A change holds from the next invoice on; one that is out already is refused at the checkout."""

    list_display = ("name", "credits", "stars", "credits_per_star", "for_sale", "position")
    list_editable = (
        "credits",
        "stars",
        "for_sale",
        "position",
    )  # a price and a tick, without a page for each
    list_filter = ("for_sale",)
    search_fields = ("name",)
    fields = ("name", "credits", "stars", "for_sale", "position", "acts")
    readonly_fields = ("acts",)

    @display(description="History")
    def acts(self, pack: CreditPack) -> SafeString | str:
        return acts_on(pack)

    @display(description="Credits a Star")
    def credits_per_star(self, pack: CreditPack) -> str:
        return f"{pack.credits / pack.stars:.2f}"


@admin.register(StarPayment)
class StarPaymentAdmin(ReadOnlyAdmin):
    """Credits are taken back first, then Telegram is asked. What it definitely refuses is given back."""

    list_display = ("id", "paid_at", "user", "telegram_id", "stars", "bought", "state", "attempts", "error")
    list_select_related = ("user", "purchase")
    list_filter = ("state", "paid_at")
    search_fields = ("=charge_id", "=telegram_id", "user__username")
    date_hierarchy = "paid_at"
    actions_detail = ("refund",)

    @display(description="Credits")
    def bought(self, payment: StarPayment) -> int:
        return payment.purchase.posted_delta if payment.purchase else 0

    def has_refund_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return Clerk.of(request).may("telegram_bot.refund_starpayment")

    @action(description="Refund", url_path="refund", permissions=["refund"], icon="undo")
    def refund(self, request: HttpRequest, object_id: str) -> HttpResponse:
        payment: StarPayment = row(self, request, object_id)
        if why := refunds.why_not(payment):
            return say_why_not(self, request, payment, why)

        def give_back(clerk: Clerk, wish: dict[str, Any]) -> str:
            staff.refund_payment(clerk=clerk, payment=payment, reason=wish["reason"], once=wish["once"])
            return f"{self.bought(payment)} credits are taken back; Telegram is asked to refund {payment.stars} Stars."

        explanation = (
            f"{self.bought(payment)} credits of {payment.user} are taken back at once, then Telegram gives "
            f"{payment.stars} Stars back to {payment.telegram_id}. If it refuses, the credits are given back."
        )
        return ask(self, request, payment, title="Refund", explanation=explanation, act=give_back)
