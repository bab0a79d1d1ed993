"""One search for all that staff are given: names, addresses, ids, receipts. On Home, on a page, and in the palette."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from allauth.account.models import EmailAddress
from django.contrib import admin
from django.db.models import BooleanField, Case, Q, Value, When
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.dataclasses import SearchResult

from accounts import api_keys
from accounts.models import ApiKey, CreditTransaction, User
from accounts.staff.actor import Actor, NotPermitted

LONGEST = 300
# Of one kind; the lists show all.
SHOWN = 8


@dataclass(frozen=True)
class Found:
    """A page of the admin that fits. `note` tells it from others of the same title. `icon`: a Material symbol."""

    title: str
    note: str
    href: str
    icon: str


Finder = Callable[[str], Iterable[Found]]
# With the permission that each needs, as `app.codename`.
_finders: list[tuple[str, Finder]] = []


def finder(permission: str) -> Callable[[Finder], Finder]:
    """Make a function part of the search: it gets what was typed, without space around it."""

    def add(find: Finder) -> Finder:
        _finders.append((permission, find))
        return find

    return add


def may_search(actor: Actor) -> bool:
    return any(actor.may(permission) for permission, _ in _finders)


def find(actor: Actor, typed: str) -> list[Found]:
    """Find all pages that fit and that the actor may see, each once."""
    text = " ".join(typed.replace("\x00", " ").split())[:LONGEST]
    if not text:
        return []
    found = (each for permission, find in _finders if actor.may(permission) for each in find(text))
    return list({each.href: each for each in found}.values())


def palette(request: HttpRequest, _lowered: str) -> list[SearchResult]:
    """Search for unfold's command palette. Reads the request: unfold lowers the text, keys have capitals."""
    found = find(Actor.of(request), request.GET.get("s", ""))
    return [SearchResult(each.title, each.note, each.href, each.icon) for each in found]


def page(request: HttpRequest) -> HttpResponse:
    """List what fits; go straight to the only one."""
    actor = Actor.of(request)
    if not may_search(actor):
        raise NotPermitted(f"{actor.user} may look for nothing.")
    typed = request.GET.get("q", "").strip()
    found = find(actor, typed)
    if len(found) == 1:
        return HttpResponseRedirect(found[0].href)
    context = {**admin.site.each_context(request), "title": "Search", "typed": typed, "found": found}
    return TemplateResponse(request, "admin/find.html", context)


# Fields in which each word of what was typed is looked for. Apps that come later add theirs.
NAMES = ["username__icontains", "email__icontains", "first_name__icontains", "last_name__icontains"]
# Fields that fit whole: these come first.
WHOLE = ["username__iexact", "email__iexact"]


@finder("accounts.view_user")
def people(text: str) -> Iterable[Found]:
    """Find users by parts of their names and addresses; whole ones first."""
    text = text.removeprefix("mailto:")
    users = User.objects.all()
    for word in text.split():
        confirmed = EmailAddress.objects.filter(email__icontains=word).values("user")
        users = users.filter(_any(NAMES, word.removeprefix("@")) | Q(pk__in=confirmed))
    whole = Case(
        When(_any(WHOLE, text.removeprefix("@")), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
    for user in users.order_by(whole.desc(), "username")[:SHOWN]:
        yield person(user)


def person(user: User, note: str = "") -> Found:
    """Make a result of a user."""
    # unfold's palette makes the first letter a capital.
    notes = ["user", user.email, user.get_full_name(), note, "" if user.is_active else "may not sign in"]
    return Found(
        title=user.username,
        note=" · ".join(filter(None, notes)),
        href=reverse("admin:accounts_user_change", args=[user.pk]),
        icon="person",
    )


@finder("accounts.view_apikey")
def keys(text: str) -> Iterable[Found]:
    """Find API keys by their first characters, or by the whole, which is hashed and not kept."""
    if not text.startswith(api_keys.PREFIX):
        return
    fits = Q(digest=api_keys.digest(text)) | Q(prefix__startswith=text)
    for key in ApiKey.objects.filter(fits).select_related("user")[:SHOWN]:
        state = "revoked" if key.revoked_at else "API key"
        href = reverse("admin:accounts_apikey_change", args=[key.pk])
        yield Found(str(key), f"{state} of {key.user}", href, "key")


@finder("accounts.view_credittransaction")
def payments(text: str) -> Iterable[Found]:
    """Find entries of the ledger by the id of a payment or an import."""
    entries = CreditTransaction.objects.filter(external_id=text).select_related("account__user")
    for entry in entries[:SHOWN]:
        href = reverse("admin:accounts_credittransaction_change", args=[entry.pk])
        yield Found(str(entry), f"transaction of {entry.account.user}", href, "receipt_long")


def _any(lookups: Iterable[str], value: Any) -> Q:
    return reduce(or_, (Q(**{lookup: value}) for lookup in lookups))
