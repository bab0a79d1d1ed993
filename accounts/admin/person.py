"""The head of a user's page: panels and a timeline with what staff come for, to which each app adds its part."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import slugify

from accounts.admin.audit_log import latest_about, line
from accounts.admin.base import link
from accounts.models import ApiKey, CreditTransaction, SecurityEvent, User, UserLimits
from accounts.staff import operations
from accounts.staff.actor import Actor

LATEST = 10
# Moments of the timeline that are shown at once; the others are folded.
SHOWN = 12
Kind = CreditTransaction.Kind


@dataclass(frozen=True)
class Moment:
    """A line of the timeline. `text` is HTML where it is safe."""

    at: datetime
    text: str
    alarm: bool = False


Context = Callable[[User, Actor], dict[str, Any]]
# By their place on the page: title, permission, context.
_panels: dict[int, tuple[str, str, Context]] = {}
_moments: list[Callable[[User, Actor], Iterable[Moment]]] = []
# Names of what entries of the ledger refer to, which belongs to another app: by reference.
namers: list[Callable[[Iterable[uuid.UUID], Actor], dict[uuid.UUID, str]]] = []


def panel(title: str, permission: str, *, place: int) -> Callable[[Context], Context]:
    """Add a panel, for actors with this permission: the function returns the context of admin/person/<title>.html."""

    def add(context: Context) -> Context:
        _panels[place] = (title, permission, context)
        return context

    return add


def moments(
    source: Callable[[User, Actor], Iterable[Moment]],
) -> Callable[[User, Actor], Iterable[Moment]]:
    """Add the latest moments of a kind to the timeline, LATEST at most."""
    _moments.append(source)
    return source


def page(user: User, actor: Actor) -> dict[str, Any]:
    """Make the context of admin/person.html."""
    lines = [moment for source in _moments for moment in source(user, actor)]
    lines.sort(key=lambda moment: moment.at, reverse=True)
    return {
        "person": user,
        "panels": [
            (title, render_to_string(f"admin/person/{slugify(title)}.html", context(user, actor)))
            for _, (title, permission, context) in sorted(_panels.items())
            if actor.may(permission)
        ],
        "timeline": lines[:SHOWN],
        "earlier": lines[SHOWN:],
    }


@panel("Wallet", "accounts.view_user", place=0)
def wallet(user: User, actor: Actor) -> dict[str, Any]:
    account = user.credit_account
    entries: list[CreditTransaction] = []
    if actor.may("accounts.view_credittransaction"):
        entries = list(account.transactions.select_related("actor")[:LATEST])
    holds = account.transactions.filter(kind=Kind.RESERVE, resolutions=None)[:LATEST] if account.held else []
    names = _names_of([*entries, *holds], actor)
    transactions = reverse("admin:accounts_credittransaction_changelist")
    return {
        "account": account,
        "limits": limits(user),
        "holds": [(entry, _about(entry, names)) for entry in holds],
        "entries": [(entry, _about(entry, names)) for entry in entries],
        "all": f"{transactions}?account__id__exact={account.pk}",
    }


def limits(user: User) -> str:
    """Write the limits that hold for the user alone."""
    row = UserLimits.of(user)
    named = [
        (UserLimits._meta.get_field(name).verbose_name, getattr(row, name))  # type: ignore[union-attr]
        for name in operations.LIMITS
    ]
    return ", ".join(f"{name}: {value:g}" for name, value in named if value is not None)


def _names_of(entries: Iterable[CreditTransaction], actor: Actor) -> dict[uuid.UUID, str]:
    references = {entry.reference for entry in entries if entry.reference}
    if not references:
        return {}
    return {key: name for namer in namers for key, name in namer(references, actor).items()}


def _about(entry: CreditTransaction, names: dict[uuid.UUID, str]) -> str:
    """Link to the job that an entry is about, by its name."""
    if entry.reference is None or entry.reference not in names:
        return ""
    return link("generation_generationjob", entry.reference, names[entry.reference])


@panel("API keys", "accounts.view_apikey", place=3)
def keys(user: User, actor: Actor) -> dict[str, Any]:
    rows = ApiKey.objects.filter(user=user).defer("digest")[: LATEST + 1]
    everything = f"{reverse('admin:accounts_apikey_changelist')}?user__id__exact={user.pk}"
    return {"keys": rows[:LATEST], "all": everything if len(rows) > LATEST else ""}


@moments
def account(user: User, actor: Actor) -> Iterable[Moment]:
    yield Moment(user.date_joined, "Joined")
    if user.last_login:
        yield Moment(user.last_login, "Signed in last")
    if user.anonymised_at:
        yield Moment(user.anonymised_at, "Closed the account")
    if actor.may("accounts.view_apikey"):
        for key in ApiKey.objects.filter(user=user)[:LATEST]:
            named = link("accounts_apikey", key.pk, key)
            yield Moment(key.created_at, format_html("Made the API key {}", named))
            if key.revoked_at:
                yield Moment(key.revoked_at, format_html("API key {} revoked", named))


@moments
def security(user: User, actor: Actor) -> Iterable[Moment]:
    if actor.may("accounts.view_securityevent"):
        for event in SecurityEvent.objects.filter(user=user)[:LATEST]:
            yield Moment(event.at, " · ".join(filter(None, (event.what, event.detail, event.address))))


@moments
def credits_by_hand(user: User, actor: Actor) -> Iterable[Moment]:
    """Tell of entries that no video has made: grants, purchases, corrections; and of refunds."""
    if not actor.may("accounts.view_credittransaction"):
        return
    kinds = {Kind.RESERVE, Kind.CAPTURE, Kind.RELEASE}
    for entry in user.credit_account.transactions.exclude(kind__in=kinds)[:LATEST]:
        named = link("accounts_credittransaction", entry.pk, f"{entry.get_kind_display()} {entry.amount:+d}")
        yield Moment(entry.created_at, format_html("{} · {}", named, entry.reason))


@moments
def acts_of_staff(user: User, actor: Actor) -> Iterable[Moment]:
    if actor.may("accounts.view_auditevent"):
        for entry in latest_about(user):
            yield Moment(entry.at, line(entry, user, dated=False))
