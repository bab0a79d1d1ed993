"""The roles that come with the service, as groups, and what each may do.

They are what this file says after every `migrate`; whoever wants others makes groups of their own.
"""

from collections.abc import Iterable

from django.contrib.auth.models import Group, Permission
from django.db import transaction

SUPPORT, OPERATOR, FINANCE, OWNER = "support", "operator", "finance", "owner"

_LOOK = {
    "accounts.view_user",
    "accounts.view_credittransaction",
    "accounts.view_apikey",
    "accounts.view_staffact",
    "accounts.view_auditrun",
    "generation.view_generationjob",
    "generation.view_gpunode",
    "generation.view_preset",
    "generation.view_refundbatch",
    "generation.view_blockedprompt",
    "generation.view_report",
    "telegram_bot.view_creditpack",
    "telegram_bot.view_telegramaccount",
    "telegram_bot.view_telegramupdate",
    "telegram_bot.view_jobmessage",
    "telegram_bot.view_notice",
    "telegram_bot.view_linkrequest",
    "telegram_bot.view_starpayment",
    "accounts.view_walletmerge",
    "django_q.view_failure",
}

# By role: permissions as `app.codename`. A role may name what an app does not have: it is passed over.
RIGHTS: dict[str, frozenset[str]] = {
    SUPPORT: frozenset(
        _LOOK | {"generation.refund_job", "accounts.change_apikey", "telegram_bot.change_jobmessage"}
    ),
    OPERATOR: frozenset(
        _LOOK
        | {
            "accounts.ban_user",
            "accounts.limit_user",
            "accounts.change_apikey",
            "generation.refund_job",
            "generation.cancel_job",
            "generation.retry_job",
            "generation.move_job",
            "generation.remove_video",
            "generation.add_blockedprompt",
            "generation.change_blockedprompt",
            "generation.delete_blockedprompt",
            "django_q.change_failure",
            "telegram_bot.change_telegramupdate",
            "telegram_bot.change_jobmessage",
            "generation.add_gpunode",
            "generation.change_gpunode",
        }
    ),
    FINANCE: frozenset(
        _LOOK
        | {
            "accounts.grant_credits",
            "accounts.adjust_credits",
            "accounts.export_transactions",
            "accounts.run_audit",
            "accounts.undo_walletmerge",
            "telegram_bot.add_creditpack",
            "telegram_bot.change_creditpack",
            "telegram_bot.refund_starpayment",
            "generation.refund_job",
            "generation.refund_any_amount",
            "generation.add_preset",
            "generation.change_preset",
        }
    ),
}
# Everything that the service's own apps know; of Django's, only what the admin shows.
_OWNED_APPS = ("accounts", "generation", "telegram_bot", "django_q")
_OWNERS_BESIDES = frozenset({"auth.view_group", "auth.add_group", "auth.change_group", "auth.delete_group"})


@transaction.atomic
def install() -> None:
    """Make the groups and bring their rights up to date. Safe to repeat."""
    known = {
        f"{app}.{codename}": pk
        for pk, app, codename in Permission.objects.values_list("pk", "content_type__app_label", "codename")
    }
    everything = {name for name in known if name.startswith(tuple(f"{app}." for app in _OWNED_APPS))}
    for role, rights in {**RIGHTS, OWNER: everything | _OWNERS_BESIDES}.items():
        _give(role, (known[right] for right in rights if right in known))


def shipped(name: str) -> bool:
    """Whether a group of that name is one of these, and so not for editing."""
    return name in {*RIGHTS, OWNER}


def _give(role: str, permissions: Iterable[int]) -> None:
    group, _ = Group.objects.get_or_create(name=role)
    wanted, has = set(permissions), set(group.permissions.values_list("pk", flat=True))
    group.permissions.add(*(wanted - has))
    group.permissions.remove(*(has - wanted))
