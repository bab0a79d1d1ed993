"""For staff: who writes, what could not be handled, what could not be delivered. Nothing here is edited by hand."""

from datetime import timedelta

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from accounts.admin.users import UserAdmin
from accounts.admin_pages import ReadOnlyAdmin
from generation.staff import home
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate


@admin.register(TelegramAccount)
class TelegramAccountAdmin(ReadOnlyAdmin):
    list_display = ("telegram_id", "username", "first_name", "user", "blocked_at", "last_seen_at")
    list_select_related = ("user",)
    search_fields = ("=telegram_id", "username", "first_name", "user__username")
    list_filter = (("blocked_at", admin.EmptyFieldListFilter), "language_code")


@admin.register(TelegramUpdate)
class TelegramUpdateAdmin(ReadOnlyAdmin):
    list_display = ("update_id", "state", "received_at", "settled_at", "error")
    list_filter = ("state", "received_at")
    search_fields = ("=update_id", "error")


@admin.register(JobMessage)
class JobMessageAdmin(ReadOnlyAdmin):
    list_display = ("job", "chat_id", "state", "attempts", "next_attempt_at", "sent_at", "error")
    list_select_related = ("job",)
    list_filter = ("state",)
    search_fields = ("=chat_id", "=job__id", "error")
    actions = ("deliver_again",)

    def response_action(
        self, request: HttpRequest, queryset: "QuerySet[JobMessage]"
    ) -> HttpResponseBase | None:
        """As Django's, which lets a selection that is no number through to the database."""
        try:
            response: HttpResponseBase | None = super().response_action(request, queryset)
            return response
        except ValueError:
            self.message_user(request, "There are no such rows.", messages.ERROR)
            return None

    @admin.action(description="Try to deliver again what could not be delivered", permissions=["view"])
    def deliver_again(self, request: HttpRequest, queryset: "QuerySet[JobMessage]") -> None:
        failed = queryset.filter(state=JobMessage.State.FAILED)
        again = failed.update(state=JobMessage.State.PENDING, attempts=0, next_attempt_at=timezone.now())
        self.message_user(request, f"{again} to be delivered again.")


@home.add_card
def failed_deliveries() -> home.Card:
    """Results of the last day that Telegram never took."""
    since = timezone.now() - timedelta(days=1)
    failed = JobMessage.objects.filter(state=JobMessage.State.FAILED, created_at__gt=since).count()
    page = reverse("admin:telegram_bot_jobmessage_changelist")
    href = f"{page}?state__exact={JobMessage.State.FAILED}"
    return home.Card("Failed deliveries", str(failed), href, "of 24 hours", alarm=bool(failed))


# Who looks for a person may know them by what Telegram calls them.
UserAdmin.search_fields = (
    *UserAdmin.search_fields,
    "=telegram_account__telegram_id",
    "telegram_account__username",
)
