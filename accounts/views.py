"""The site's pages about credits and API keys."""

import uuid
from typing import cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import api_keys
from accounts.forms import ApiKeyForm
from accounts.models import ApiKey, CreditAccount, User

HISTORY_PAGE_SIZE = 50


@require_safe
@login_required
@never_cache
def credit_history(request: HttpRequest) -> HttpResponse:
    """Every entry of the wallet, newest first, with the balance after it; `?before=` an entry's id leads on."""
    account = CreditAccount.objects.get(user=_user(request))
    entries = account.transactions.order_by("-id")
    before = request.GET.get("before", "")
    if before.isascii() and before.isdigit() and len(before) < 19:
        entries = entries.filter(pk__lt=int(before))
    found = list(entries[: HISTORY_PAGE_SIZE + 1])
    context = {
        "account": account,
        "entries": found[:HISTORY_PAGE_SIZE],
        "older": found[HISTORY_PAGE_SIZE - 1].pk if len(found) > HISTORY_PAGE_SIZE else None,
        "is_first_page": not before,
    }
    return render(request, "accounts/credits.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def api_keys_page(request: HttpRequest) -> HttpResponse:
    """The keys that work, and a new one, which is shown in this one answer and never again."""
    form, secret = ApiKeyForm(request.POST or None), None
    if request.method == "POST" and form.is_valid():
        _, secret = api_keys.issue(user=_user(request), name=form.cleaned_data["name"])
        form = ApiKeyForm()
    keys = ApiKey.objects.filter(user=_user(request), revoked_at=None)
    context = {"form": form, "secret": secret, "keys": keys, "endpoint": request.build_absolute_uri("/v1")}
    return render(request, "accounts/api_keys.html", context, status=422 if form.errors else 200)


@require_POST
@login_required
def revoke_api_key(request: HttpRequest, key_id: uuid.UUID) -> HttpResponse:
    key = get_object_or_404(ApiKey, pk=key_id, user=_user(request))
    api_keys.revoke(key=key)
    messages.success(request, f"The key “{key.name}” was revoked: it no longer works.")
    return redirect("api_keys")


def _user(request: HttpRequest) -> User:
    return cast("User", request.user)
