"""Chats, payments and deliveries on the page of a user, in the search of staff and on Home."""

import re
from collections.abc import Iterable
from typing import Any

from django.db.models import Q
from django.urls import reverse
from django.utils.html import format_html

from accounts.admin import person, search
from accounts.admin.base import link
from accounts.admin.person import Moment
from accounts.admin.search import Found
from accounts.models import User
from accounts.staff.actor import Actor
from generation.staff import home
from telegram_bot.models import JobMessage, StarPayment, TelegramAccount

# Of a person, or less than 0: of a group.
CHAT_ID = re.compile(r"-?[0-9]{1,18}")


@person.panel("Chats", "telegram_bot.view_telegramaccount", place=2)
def chats(user: User, actor: Actor) -> dict[str, Any]:
    """Collect the chats of a user, and what could not be delivered there."""
    deliveries: list[JobMessage] = []
    if actor.may("telegram_bot.view_jobmessage"):
        rows = JobMessage.objects.filter(job__user=user).select_related("job").order_by("-id")
        deliveries = list(rows[: person.LATEST])
    account = (
        TelegramAccount.objects.filter(Q(user=user) | Q(former_user=user)).select_related("user").first()
    )
    own = account.telegram_id if account else None
    failed = [message for message in deliveries if message.error and message.state != JobMessage.State.SENT]
    return {
        "account": account,
        "joined_with": account.user if account and account.user_id != user.pk else None,
        "groups": sorted({message.chat_id for message in deliveries} - {own}),
        "failed": [
            (message, link("telegram_bot_jobmessage", message.pk, message.job.prompt[:60]))
            for message in failed
        ],
    }


@person.moments
def in_chats(user: User, actor: Actor) -> Iterable[Moment]:
    """Tell of joining, payments, and results that could not be delivered."""
    if actor.may("telegram_bot.view_telegramaccount"):
        for account in TelegramAccount.objects.filter(user=user):
            named = link("telegram_bot_telegramaccount", account.pk, account)
            yield Moment(account.created_at, format_html("First seen on Telegram as {}", named))
            if account.blocked_at:
                yield Moment(account.blocked_at, format_html("{} blocked the bot", named), alarm=True)
    if actor.may("telegram_bot.view_starpayment"):
        for payment in StarPayment.objects.filter(user=user)[: person.LATEST]:
            named = link("telegram_bot_starpayment", payment.pk, f"{payment.stars} Stars")
            yield Moment(payment.paid_at, format_html("Paid {} · {}", named, payment.get_state_display()))
    if actor.may("telegram_bot.view_jobmessage"):
        failed = JobMessage.objects.filter(job__user=user, state=JobMessage.State.FAILED).select_related(
            "job"
        )
        for message in failed[: person.LATEST]:
            named = link("telegram_bot_jobmessage", message.pk, message.job.prompt[:60])
            at = message.job.finished_at or message.created_at
            yield Moment(at, format_html("Could not deliver {} · {}", named, message.error), alarm=True)


@search.finder("telegram_bot.view_telegramaccount")
def on_telegram(text: str) -> Iterable[Found]:
    """Find users by the id or the name that they have on Telegram, and by the id of a chat they asked in."""
    name = text.removeprefix("https://").removeprefix("t.me/").removeprefix("@")
    fits = Q(username__istartswith=name) | Q(first_name__icontains=text)
    if CHAT_ID.fullmatch(text):
        fits = Q(telegram_id=int(text))
        if int(text) < 0:  # a group
            fits = Q(user__in=JobMessage.objects.filter(chat_id=int(text)).values("job__user"))
    for account in TelegramAccount.objects.filter(fits).select_related("user")[: search.SHOWN]:
        yield search.person(account.user, f"Telegram {account.telegram_id} {account.first_name}".strip())


@search.finder("telegram_bot.view_starpayment")
def receipts(text: str) -> Iterable[Found]:
    """Find payments by the receipt that Telegram and the bot show."""
    for payment in StarPayment.objects.filter(charge_id=text.removeprefix("Receipt: ")).select_related(
        "user"
    ):
        href = reverse("admin:telegram_bot_starpayment_change", args=[payment.pk])
        state = payment.get_state_display().lower()
        yield Found(
            payment.charge_id, f"receipt of {payment.user} · {payment.stars} Stars · {state}", href, "star"
        )


@home.add_stat
def unknown_payments() -> home.Stat:
    """Count payments that staff have to look at."""
    unknown = StarPayment.objects.filter(state=StarPayment.State.UNKNOWN).count()
    page = reverse("admin:telegram_bot_starpayment_changelist")
    href = f"{page}?state__exact={StarPayment.State.UNKNOWN}"
    return home.Stat("Unknown payments", str(unknown), href, "credited to no user", alarm=bool(unknown))
