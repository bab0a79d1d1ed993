"""The audit log of the staff, and the decorator that makes a function an operation of theirs.

Entries are added in the transaction of the change itself, and the database refuses to alter them.
"""

import functools
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.db import IntegrityError, models, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from accounts import limits, merging
from accounts.models import Approval, AuditEvent, User
from accounts.staff.actor import Actor, DoneBefore, NeedsApproval, Refused

P = ParamSpec("P")
R = TypeVar("R")
Row = TypeVar("Row", bound=models.Model)
# A subject with its values before and after.
Change = tuple[models.Model, dict[str, Any], dict[str, Any]]
DAY = timedelta(days=1)
# By name.
_operations: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """The end of an operation on several rows: a result for each for which it was carried out, and why others were
    passed over. repeated: rows for which the same form had carried it out before.
    """

    results: list[R]
    repeated: int
    refusals: list[str]

    def only(self) -> R:
        """Return the result of an operation on one row. Raises DoneBefore or Refused where there is none."""
        if self.results:
            return self.results[0]
        raise DoneBefore if self.repeated else Refused(next(iter(self.refusals), None))


@dataclass
class Operation:
    """One call of an operation, which writes the entry itself, because it alone knows the values before and after.

    once: the id of the form, if there is one; a second call with it is refused. approved_by: the colleague who did.
    """

    actor: Actor
    act: str
    reason: str
    once: uuid.UUID | None = None
    approved_by: User | None = None
    recorded: bool = False
    repeated: int = 0
    refusals: list[str] = field(default_factory=list)

    def possible(self, rows: models.QuerySet[Row], why_not: Callable[[Row], str | None]) -> list[Row]:
        """Lock rows in the order of their keys and read them; pass over those that `why_not` finds a reason against,
        and those of which the log says that the same form has done it. Their `Outcome` tells of them.
        """
        locked = list(rows.order_by("pk").select_for_update(no_key=True, of=("self",)))
        forms = {self._once_for(row): row for row in locked} if self.once else {}
        done = set(AuditEvent.objects.filter(once__in=forms).values_list("once", flat=True))
        before = {forms[once].pk for once in done}
        self.repeated += len(before)
        reasons = {row.pk: why_not(row) for row in locked if row.pk not in before}
        self.refusals += filter(None, reasons.values())
        return [row for row in locked if row.pk not in before and reasons[row.pk] is None]

    def outcome(self, results: list[R]) -> Outcome[R]:
        return Outcome(results, self.repeated, self.refusals)

    def _once_for(self, subject: models.Model) -> uuid.UUID | None:
        return self.once and uuid.uuid5(self.once, str(subject.pk))

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

    def record_each(self, changes: Sequence[Change], *, credits: int = 0) -> None:  # noqa: A002
        """Add an entry for each of several subjects of one form, in one query. Raises DoneBefore, as `record`."""
        self._add([self._entry(*each, credits, once=self._once_for(each[0])) for each in changes])

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
            approved_by=self.approved_by,
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

    def begin_gift(self, users: Iterable[int]) -> None:
        """Refuse what is for the actor, or for the colleague who approves it, under whichever account.

        Other gifts of the actor wait until the end of the transaction.
        """
        User.objects.select_for_update(no_key=True).get(pk=self.actor.user.pk)
        if merging.same_person(self.actor.user, self.approved_by) & set(users):
            raise Refused("One of these accounts is your own: a colleague has to do this.")

    def check_alone(self, needed: NeedsApproval, acts: Sequence[str], limit: int | None) -> None:
        """Raise `needed` where it makes more than `limit` by these acts in 24 hours, approved ones aside."""
        given = given_today(self.actor.user, acts, approved_by=None)
        if limit is not None and not self.approved_by and given + needed.values["credits"] > limit:
            raise needed

    def _add(self, entries: list[AuditEvent]) -> None:
        once = entries[0].once if entries else None
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
    Operation instead. Where the function raises NeedsApproval, it changes nothing, and an Approval is kept.

    permission: as `app.codename`. act: the name in the log, such as `user.ban`.

    Raises:
        NotPermitted: the actor may not. DoneBefore: the form was carried out already.
    """

    def decorate(function: Callable[Concatenate[Operation, P], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def run(*args: Any, actor: Actor, reason: str, once: uuid.UUID | None = None, **kwargs: Any) -> R:
            actor.must(permission)
            running = Operation(actor, act, reason, once, kwargs.pop("approved_by", None))
            try:
                with transaction.atomic():
                    result = function(running, *args, **kwargs)
                    if not running.recorded:
                        raise RuntimeError(f"{act} wrote no entry in the audit log")
                    return result
            except NeedsApproval as needed:
                with transaction.atomic():
                    values = {"permission": permission, **needed.values}
                    kept = Approval.objects.create(actor=actor.user, act=act, reason=reason[:500], **values)
                    Operation(actor, "approval.ask", reason, once).record(kept, after={"what": kept.summary})
                raise

        _operations[act] = run
        return run

    return decorate


def carry_out(approval: Approval, approved_by: Actor) -> None:
    """Do what was asked for, as its actor, whose rights and limits are checked anew. Raises what it raises."""
    actor, approver = Actor(approval.actor, approved_by.address), approved_by.user
    run = _operations[approval.act]
    run(**approval.arguments, actor=actor, reason=approval.reason, approved_by=approver)


def given_today(actor: User, acts: Sequence[str], **only: Any) -> int:
    """Sum up the credits that the actor gave by these acts in 24 hours."""
    entries = AuditEvent.objects.filter(actor=actor, act__in=acts, credits__gt=0, at__gt=Now() - DAY, **only)
    return entries.aggregate(total=Sum("credits"))["total"] or 0


def note_command(user: User, credits: int, reason: str) -> None:  # noqa: A002
    """Add the entry of a grant by a command on the server, which no limit of staff binds."""
    entry = Operation(Actor(user, "command line"), "user.grant", reason)._entry(
        user, {}, {}, credits, once=None
    )
    entry.actor = None
    entry.save()


def note_look(actor: Actor, subject: models.Model) -> None:
    """Add the entry of a look at private things of a user, once an hour."""
    try:
        limits.take("look", f"{actor.user.pk} {subject._meta.label_lower} {subject.pk}")
    except limits.TooOften:
        return
    if getattr(subject, "user_id", None) != actor.user.pk:
        Operation(actor, "look", "").record(subject)


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
