"""The site's pages about credits and API keys."""

import uuid
from typing import cast

from allauth.account.models import EmailAddress
from allauth.core import ratelimit
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone, translation
from django.utils.cache import patch_cache_control
from django.utils.http import content_disposition_header, url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django.views.i18n import JavaScriptCatalog, set_language

from accounts import api_keys, languages, notices, privacy
from accounts.forms import ApiKeyForm, CloseAccountForm
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


@require_POST
@login_required
def close_notice(request: HttpRequest, notice_id: int) -> HttpResponse:
    """Back to where they were, without it."""
    notices.close(user=_user(request), notice_id=notice_id)
    target = request.POST.get("next", "")
    return redirect(target if url_has_allowed_host_and_scheme(target, {request.get_host()}) else "dashboard")


# --- The account ------------------------------------------------------------------------------------------------------


@require_safe
@login_required
@never_cache
def account(request: HttpRequest) -> HttpResponse:
    """What there is to see and set about oneself; each line leads to its own page."""
    user = _user(request)
    types = list(Authenticator.objects.filter(user=user).values_list("type", flat=True))
    context = {
        "email": EmailAddress.objects.filter(user=user).order_by("-primary", "-verified").first(),
        "has_app": Authenticator.Type.TOTP in types,
        "passkeys": types.count(Authenticator.Type.WEBAUTHN),
        "keys": ApiKey.objects.filter(user=user, revoked_at=None).count(),
        "telegram_enabled": bool(settings.TELEGRAM_BOT_TOKEN),
    }
    return render(request, "accounts/account.html", context)


@require_POST
@login_required
def export_data(request: HttpRequest) -> StreamingHttpResponse:
    """A ZIP with everything that is known about the visitor, and their videos."""
    user = _user(request)
    chunks = privacy.archive(user=user)
    response = StreamingHttpResponse(
        privacy.off_the_loop(chunks) if isinstance(request, ASGIRequest) else chunks,
        content_type="application/zip",
    )
    filename = f"{user.username}-{timezone.now():%Y-%m-%d}.zip"
    response["Content-Disposition"] = content_disposition_header(True, filename)
    response["Cache-Control"] = "no-store"
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def close_account(request: HttpRequest) -> HttpResponse:
    """Ask for the password, then close the account for good."""
    form = CloseAccountForm(request.POST or None, user=_user(request))
    if request.method == "POST":
        if too_many := ratelimit.consume_or_429(request, action="reauthenticate", user=request.user):
            return cast("HttpResponse", too_many)
        if form.is_valid():
            return _close(request)
    return render(request, "accounts/close.html", {"form": form}, status=422 if form.errors else 200)


def _close(request: HttpRequest) -> HttpResponse:
    try:
        privacy.close(user=_user(request))
    except privacy.LastSuperuser:
        words = _("Without you nobody could run this site: make another superuser first.")
        messages.error(request, words)
        return redirect("close_account")
    logout(request)
    return render(request, "accounts/closed.html")


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
        "credits_url": settings.CREDITS_URL,
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
