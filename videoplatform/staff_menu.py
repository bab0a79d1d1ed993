"""The left menu of the admin, grouped by task."""

from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy

Item = dict[str, Any]


def _rows(title: str, icon: str, model: str) -> Item:
    """Make an entry for a list of rows, shown to staff with the permission to view them. model: `app.model`."""
    app, _, name = model.partition(".")

    def may_view(request: HttpRequest) -> bool:
        return request.user.has_perm(f"{app}.view_{name}")

    link = reverse_lazy(f"admin:{app}_{name}_changelist")
    return {"title": title, "icon": icon, "link": link, "permission": may_view}


def _group(title: str, *items: Item, folded: bool = False) -> Item:
    return {"title": title, "items": items, "collapsible": folded}


NAVIGATION = [
    _group(
        "",
        {"title": "Home", "icon": "home", "link": reverse_lazy("admin:index")},
        _rows("Jobs", "movie", "generation.generationjob"),
        _rows("GPU nodes", "memory", "generation.gpunode"),
        _rows("Bulk refunds", "healing", "generation.bulkrefund"),
    ),
    _group(
        "Users and credits",
        _rows("Users", "group", "accounts.user"),
        _rows("Transactions", "receipt_long", "accounts.credittransaction"),
        _rows("Approvals", "how_to_reg", "accounts.approval"),
        _rows("Star payments", "star", "telegram_bot.starpayment"),
        _rows("Joined accounts", "merge", "accounts.walletmerge"),
        _rows("API keys", "key", "accounts.apikey"),
    ),
    _group(
        "Content",
        _rows("Reports", "flag", "generation.report"),
        _rows("Content rules", "block", "generation.blockedprompt"),
    ),
    _group(
        "On offer",
        _rows("Presets", "tune", "generation.preset"),
        _rows("Credit packs", "sell", "telegram_bot.creditpack"),
    ),
    _group(
        "Checks",
        _rows("Audit log", "history", "accounts.auditevent"),
        _rows("Security log", "shield", "accounts.securityevent"),
        _rows("Audits of the books", "fact_check", "accounts.auditrun"),
        _rows("Failed tasks", "error", "django_q.failure"),
    ),
    _group(
        "Telegram",
        _rows("Deliveries", "send", "telegram_bot.jobmessage"),
        _rows("Notices", "campaign", "telegram_bot.chatnotice"),
        _rows("Updates", "inbox", "telegram_bot.telegramupdate"),
        _rows("Accounts", "person", "telegram_bot.telegramaccount"),
        _rows("Requests to join", "link", "telegram_bot.linkrequest"),
        folded=True,
    ),
    _group(
        "Rights",
        _rows("Roles", "badge", "auth.group"),
        _rows("Second steps", "lock", "mfa.authenticator"),
        folded=True,
    ),
]
