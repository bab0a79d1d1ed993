"""The audit log of the staff, and the decorator that makes a function an operation of theirs.

Entries are added in the transaction of the change itself, and the database refuses to alter them.
"""

import functools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction

from accounts.models import AuditEvent
from accounts.staff.actor import Actor, DoneBefore

P = ParamSpec("P")
R = TypeVar("R")
# A subject with its values before and after.
Change = tuple[models.Model, dict[str, Any], dict[str, Any]]


@dataclass
class Operation:
    """One call of an operation, which writes the entry itself, because it alone knows the values before and after.

    once: the id of the form, if there is one; a second call with the same form is refused.
    """

    actor: Actor
    act: str
    reason: str
    once: uuid.UUID | None = None
    recorded: bool = False

    def record(
        self,
        subject: models.Model,
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        credits: int = 0,  # noqa: A002  (the column's name)
    ) -> None:
        """Add the entry, inside the transaction and before the change: a second call with the same form waits here.

        Raises:
            DoneBefore: the form was carried out already.
        """
        self._add([self._entry(subject, before or {}, after or {}, credits, once=self.once)])

    def record_each(self, changes: Sequence[Change], *, credits: int) -> None:  # noqa: A002
        """Add an entry for each of several subjects of one form, in one query. Raises DoneBefore, as `record`."""
        ids = [self.once and uuid.uuid5(self.once, str(subject.pk)) for subject, _, _ in changes]
        self._add([self._entry(*each, credits, once=once) for each, once in zip(changes, ids, strict=True)])

    def _entry(
        self,
        subject: models.Model,
        before: dict[str, Any],
        after: dict[str, Any],
        credits: int,  # noqa: A002
        *,
        once: uuid.UUID | None,
    ) -> AuditEvent:
        return AuditEvent(
            actor=self.actor.user,
            address=self.actor.address,
            act=self.act,
            subject_kind=subject._meta.label_lower,
            subject_id=str(subject.pk),
            subject_name=str(subject)[:200],
            reason=self.reason[:500],
            before=plain(before),
            after=plain(after),
            credits=credits,
            once=once,
        )

    def _add(self, entries: list[AuditEvent]) -> None:
        once = entries[0].once
        try:
            with transaction.atomic():
                AuditEvent.objects.bulk_create(entries)
        except IntegrityError as error:
            if once is not None and carried_out(once):
                raise DoneBefore from error
            raise
        self.recorded = True


def operation(
    permission: str, act: str
) -> Callable[[Callable[Concatenate[Operation, P], R]], Callable[..., R]]:
    """Make a function an operation of the staff: permission, transaction and entry in the audit log.

    The caller passes `actor`, `reason` and `once`, the id of the form if there is one; the function gets an
    Operation instead.

    permission: as `app.codename`. act: the name in the log, such as `user.ban`.

    Raises:
        NotPermitted: the actor may not. DoneBefore: the form was carried out already.
    """

    def decorate(function: Callable[Concatenate[Operation, P], R]) -> Callable[..., R]:
        @functools.wraps(function)
        @transaction.atomic
        def run(*args: Any, actor: Actor, reason: str, once: uuid.UUID | None = None, **kwargs: Any) -> R:
            actor.must(permission)
            running = Operation(actor, act, reason, once)
            result = function(running, *args, **kwargs)
            if not running.recorded:
                raise RuntimeError(f"{act} wrote no entry in the audit log")
            return result

        return run

    return decorate


def carried_out(once: uuid.UUID) -> bool:
    """Tell whether the form with this id was carried out."""
    return AuditEvent.objects.filter(once=once).exists()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Make the values fit for JSON: rows by their names, sets of rows as lists of names, without NULs."""
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
