"""The log of what staff did. Entries are added in the transaction of the act itself, and never changed."""

import uuid
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction

from accounts.models import StaffAct
from accounts.staff.actor import Actor, DoneBefore


def record(
    *,
    actor: Actor,
    act: str,
    subject: models.Model,
    reason: str = "",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    credits: int = 0,  # noqa: A002  (the column's name)
    once: uuid.UUID | None = None,
) -> StaffAct:
    """Write one act down. Must be called inside the transaction that makes the change.

    once: the id of the form. Record it before the change: a second one with the same id waits for the first.

    Raises:
        DoneBefore: the form with this id was carried out already.
    """
    entry = StaffAct(
        actor=actor.user,
        address=actor.address,
        act=act,
        subject_kind=subject._meta.label_lower,
        subject_id=str(subject.pk),
        subject_name=str(subject)[:200],
        reason=reason[:500],
        before=plain(before or {}),
        after=plain(after or {}),
        credits=credits,
        once=once,
    )
    try:
        with transaction.atomic():
            entry.save(force_insert=True)
    except IntegrityError as error:
        if once is not None and carried_out(once):
            raise DoneBefore from error
        raise
    return entry


def carried_out(once: uuid.UUID) -> bool:
    """Whether the form with this id was."""
    return StaffAct.objects.filter(once=once).exists()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON holds it: rows by their names, sets of rows as lists of names, NULs left out."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case models.QuerySet() | list() | tuple() | set():
            return [_plain(item) for item in value]
        case dict():
            return plain({str(name): item for name, item in value.items()})
        case str() | models.Model():
            return str(value).replace("\x00", "")
    return DjangoJSONEncoder().encode(value).strip('"')


def changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both, without what is the same in them."""
    before, after = plain(before), plain(after)
    names = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in names}, {name: after[name] for name in names}
