"""The roles that come with the service, as groups with permissions.

Every `migrate` restores them; an owner makes groups beside them for other needs.
"""

from django.contrib.auth.models import Group, Permission
from django.db import transaction

SUPPORT, OPERATOR, FINANCE, OWNER = "support", "operator", "finance", "owner"

_LOOK = {
    "accounts.view_user",
    "accounts.view_credittransaction",
    "accounts.view_apikey",
    "accounts.view_auditevent",
    "accounts.view_approval",
    "accounts.view_auditrun",
    "generation.view_generationjob",
    "generation.view_gpunode",
    "generation.view_preset",
    "generation.view_bulkrefund",
    "generation.view_blockedprompt",
    "generation.view_report",
    "telegram_bot.view_creditpack",
    "telegram_bot.view_telegramaccount",
    "telegram_bot.view_telegramupdate",
    "telegram_bot.view_jobmessage",
    "telegram_bot.view_chatnotice",
    "telegram_bot.view_linkrequest",
    "telegram_bot.view_starpayment",
    "accounts.view_walletmerge",
    "django_q.view_failure",
}

# By role: permissions as `app.codename`; unknown ones are passed over.
RIGHTS: dict[str, frozenset[str]] = {
    SUPPORT: frozenset(
        _LOOK | {"generation.refund_job", "accounts.change_apikey", "telegram_bot.change_jobmessage"}
    ),
    OPERATOR: frozenset(
        _LOOK
        | {
            "accounts.ban_user",
            "accounts.view_securityevent",
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
            "accounts.limit_user",
            "accounts.set_price_factor",
            "accounts.run_audit",
            "accounts.undo_walletmerge",
            "telegram_bot.refund_starpayment",
            "generation.refund_job",
            "generation.refund_any_amount",
            "generation.add_preset",
            "generation.change_preset",
        }
    ),
}
# An owner has all permissions of the service's own apps, and those of Django's that the admin shows.
_OWNED_APPS = ("accounts", "generation", "telegram_bot", "django_q")
_OWNERS_BESIDES = frozenset({"auth.view_group", "auth.add_group", "auth.change_group", "auth.delete_group"})


@transaction.atomic
def install() -> None:
    """Create the groups and restore their permissions. Safe to repeat."""
    known = {
        f"{app}.{codename}": pk
        for pk, app, codename in Permission.objects.values_list("pk", "content_type__app_label", "codename")
    }
    everything = {name for name in known if name.startswith(tuple(f"{app}." for app in _OWNED_APPS))}
    for role, rights in {**RIGHTS, OWNER: everything | _OWNERS_BESIDES}.items():
        group, _ = Group.objects.get_or_create(name=role)
        group.permissions.set(known[right] for right in rights if right in known)


def shipped(name: str) -> bool:
    """Tell whether a group of that name comes with the service, and so is not edited."""
    return name in {*RIGHTS, OWNER}
