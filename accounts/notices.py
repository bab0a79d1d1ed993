"""What people are told of what staff did about them: on every page of the site until they close it, and by whatever
other door listens to `made`."""

from typing import Any

from django.dispatch import Signal
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from accounts.models import Notice, User

# Sent with `notice`, inside the transaction that makes it.
made = Signal()
SHOWN = 3


def tell(*, user: User, kind: str, **facts: Any) -> Notice:
    """Have `user` told. Facts: as `words` needs them for the kind."""
    notice = Notice.objects.create(user=user, kind=kind, facts=facts)
    made.send(sender=Notice, notice=notice)
    return notice


def words(notice: Notice) -> str:
    """In the language that is active."""
    facts: dict[str, Any] = notice.facts
    if notice.kind == Notice.Kind.REMOVAL:
        said = _("Your video “%(prompt)s” was removed: %(reason)s")
        return said % {"prompt": facts["prompt"], "reason": facts["reason"]}
    said = ngettext(
        "We gave you back %(credits)d credits for %(videos)d video: %(reason)s",
        "We gave you back %(credits)d credits for %(videos)d videos: %(reason)s",
        facts["videos"],
    )
    return said % facts


def unseen(user: User) -> list[Notice]:
    """The latest that `user` has not closed."""
    return list(Notice.objects.filter(user=user, seen_at=None)[:SHOWN])


def close(*, user: User, notice_id: int) -> None:
    """It is not shown again."""
    Notice.objects.filter(user=user, pk=notice_id, seen_at=None).update(seen_at=timezone.now())


def for_pages(request: HttpRequest) -> dict[str, Any]:
    """Context processor: `notices`, read when a template asks for them."""

    def lines() -> list[tuple[int, str]]:
        user = getattr(request, "user", None)
        return [(each.pk, words(each)) for each in unseen(user)] if isinstance(user, User) else []

    return {"notices": SimpleLazyObject(lines)}
