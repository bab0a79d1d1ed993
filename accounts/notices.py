"""Notices to users of what staff did: on every page of the site until closed, and to the receivers of `made`."""

from typing import Any

from django.dispatch import Signal
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from accounts.models import Notice, User

# Sent with `notice`, inside the transaction that makes it.
made = Signal()
SHOWN = 3


def tell(*, user: User, kind: str, **facts: Any) -> Notice:
    """Make a notice to `user`. facts: what `text_of` needs for the kind."""
    notice = Notice.objects.create(user=user, kind=kind, facts=facts)
    made.send(sender=Notice, notice=notice)
    return notice


def text_of(notice: Notice) -> str:
    """Write the notice in the active language."""
    facts: dict[str, Any] = notice.facts
    if notice.kind == Notice.Kind.REMOVAL:
        return _("Your video “%(prompt)s” was removed: %(reason)s") % facts
    number = facts["credits"]
    given = ngettext("%(number)d credit", "%(number)d credits", number) % {"number": number}
    text = ngettext(
        "We gave you back %(credits)s for %(videos)d video: %(reason)s",
        "We gave you back %(credits)s for %(videos)d videos: %(reason)s",
        facts["videos"],
    )
    return text % (facts | {"credits": given})


def unseen(user: User) -> list[Notice]:
    """Return the latest that `user` has not closed."""
    return list(Notice.objects.filter(user=user, seen_at=None)[:SHOWN])


def close(*, user: User, notice_id: int) -> None:
    Notice.objects.filter(user=user, pk=notice_id, seen_at=None).update(seen_at=timezone.now())
