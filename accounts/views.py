"""The site's pages about credits and API keys."""

import uuid
from typing import cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import translation
from django.utils.cache import patch_cache_control
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django.views.i18n import JavaScriptCatalog, set_language

from accounts import api_keys, languages
from accounts.forms import ApiKeyForm
from accounts.models import ApiKey, CreditAccount, User

HISTORY_PAGE_SIZE = 50


# --- Language ---------------------------------------------------------------------------------------------------------


@require_POST
def choose_language(request: HttpRequest) -> HttpResponse:
    """Back to where the visitor was, in the language they picked: a cookie, and of a signed-in person for good."""
    language = request.POST.get("language", "")
    if request.user.is_authenticated and languages.is_spoken(language):
        languages.remember(user=_user(request), language=language)
    return set_language(request)


@require_safe
def words(request: HttpRequest, language: str, version: str) -> HttpResponseBase:
    """The words that the scripts of the pages use. Their address changes with them, so browsers may keep them."""
    if not languages.is_spoken(language):
        raise Http404
    with translation.override(language):
        # Of the apps' own catalogs none is wanted: the admin's words are many.
        response = JavaScriptCatalog.as_view(packages=["accounts"])(request)
    if version == languages.words_version(language):
        patch_cache_control(response, public=True, immutable=True, max_age=365 * 24 * 3600)
    return response


# --- Credits and keys -------------------------------------------------------------------------------------------------


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
    messages.success(request, _("The key “%(name)s” was revoked: it no longer works.") % {"name": key.name})
    return redirect("api_keys")


def _user(request: HttpRequest) -> User:
    return cast("User", request.user)
