"""The site's pages about the account, its credits and API keys, and the choice of language."""

import uuid

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.cache import patch_cache_control
from django.utils.http import content_disposition_header, url_has_allowed_host_and_scheme
from django.utils.translation import get_language, gettext_noop
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe
from django.views.i18n import JavaScriptCatalog, set_language

from accounts import api_keys, languages, ledger, notices, privacy, security_log
from accounts.auth import SiteRequest, signed_in
from accounts.forms import ApiKeyForm, CloseAccountForm
from accounts.models import ApiKey, CreditAccount, SecurityEvent, User

HISTORY_PAGE_SIZE = 50
SHOWN_EVENTS = 10


# --- Language ---------------------------------------------------------------------------------------------------------


@require_POST
def choose_language(request: HttpRequest) -> HttpResponse:
    """Set the language by a cookie, and for a signed-in user for good; go back to the page."""
    language = request.POST.get("language", "")
    if isinstance(request.user, User) and languages.is_supported(language):
        languages.remember(user=request.user, language=language)
    return set_language(request)


@require_safe
def script_catalog(request: HttpRequest, language: str, version: str) -> HttpResponseBase:
    """Serve the scripts' message catalog. Its address changes with it, so browsers may keep it."""
    if not languages.is_supported(language):
        raise Http404
    with translation.override(language):
        # One package of few messages: the admin's own catalog is large.
        response = JavaScriptCatalog.as_view(packages=["accounts"])(request)
    if version == languages.catalog_version(language):
        patch_cache_control(response, public=True, immutable=True, max_age=365 * 24 * 3600)
    return response


# --- The account ------------------------------------------------------------------------------------------------------


@signed_in("POST")
def close_notice(request: SiteRequest, notice_id: int) -> HttpResponse:
    """Close the notice and go back to the page."""
    notices.close(user=request.user, notice_id=notice_id)
    target = request.POST.get("next", "")
    return redirect(target if url_has_allowed_host_and_scheme(target, {request.get_host()}) else "dashboard")


@signed_in("GET", "HEAD")
def account(request: SiteRequest) -> HttpResponse:
    """Show the account; each line leads to its own page."""
    user = request.user
    types = list(Authenticator.objects.filter(user=user).values_list("type", flat=True))
    context = {
        "email": EmailAddress.objects.filter(user=user).order_by("-primary", "-verified").first(),
        "has_app": Authenticator.Type.TOTP in types,
        "passkeys": types.count(Authenticator.Type.WEBAUTHN),
        "keys": ApiKey.objects.filter(user=user, revoked_at=None).count(),
        "telegram_enabled": bool(settings.TELEGRAM_BOT_TOKEN),
        "events": SecurityEvent.objects.filter(user=user)[:SHOWN_EVENTS],
    }
    return render(request, "accounts/account.html", context)


@signed_in("POST")
def choose_mails(request: SiteRequest) -> HttpResponse:
    """Switch mails about videos on or off. Their language is the page's, unless the visitor has chosen one."""
    user = request.user
    wanted = request.POST.get("when_ready") == "on"
    if wanted and not EmailAddress.objects.filter(user=user, verified=True).exists():
        messages.error(request, _("Please add an address and confirm it first."))
        return redirect("account_email")
    User.objects.filter(pk=user.pk).update(mail_when_ready=wanted)
    if wanted and not user.language:
        languages.remember(user=user, language=get_language() or settings.LANGUAGE_CODE)
    return redirect(f"{reverse('account')}#notifications")


@signed_in("POST", lately=True)
def export_data(request: SiteRequest) -> StreamingHttpResponse:
    """Send a ZIP of everything that is known about the visitor, with their videos."""
    user = request.user
    security_log.note(gettext_noop("data exported"), user, request)
    chunks = privacy.archive(user=user)
    filename = f"{user.username}-{timezone.now():%Y-%m-%d}.zip"
    return StreamingHttpResponse(
        privacy.read_in_threads(chunks) if isinstance(request, ASGIRequest) else chunks,
        content_type="application/zip",
        headers={
            "Content-Disposition": content_disposition_header(True, filename),
            "Cache-Control": "no-store",
        },
    )


@signed_in("GET", "HEAD", "POST", lately=True)
def close_account(request: SiteRequest) -> HttpResponse:
    """Ask for the user name, then close the account for good."""
    form = CloseAccountForm(request.POST or None, user=request.user)
    if request.method == "POST" and form.is_valid():
        try:
            privacy.close(user=request.user, request=request)
        except privacy.LastSuperuser:
            text = _("You are the last superuser of this site: make another superuser first.")
            messages.error(request, text)
            return redirect("close_account")
        logout(request)
        return render(request, "accounts/closed.html")
    return render(request, "accounts/close.html", {"form": form}, status=422 if form.errors else 200)


# --- Credits and keys -------------------------------------------------------------------------------------------------


@signed_in("GET", "HEAD")
def credit_history(request: SiteRequest) -> HttpResponse:
    """List the wallet's history, one line a video, newest first; `?before=` the id of a line's last entry leads on."""
    account = CreditAccount.objects.get(user=request.user)
    before = request.GET.get("before", "")
    known = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
    lines = ledger.history(account=account, before=known, limit=HISTORY_PAGE_SIZE + 1)
    context = {
        "account": account,
        "lines": lines[:HISTORY_PAGE_SIZE],
        "older": lines[HISTORY_PAGE_SIZE - 1].latest.pk if len(lines) > HISTORY_PAGE_SIZE else None,
        "is_first_page": not before,
        "credits_url": settings.CREDITS_URL,
    }
    return render(request, "accounts/credits.html", context)


@signed_in("GET", "HEAD", "POST", lately=True)
def api_keys_page(request: SiteRequest) -> HttpResponse:
    """List the keys that work, and make a new one, which only this response shows; a reload makes no second one."""
    fresh = ApiKeyForm(initial={"key_id": uuid.uuid4()})
    form, secret = (ApiKeyForm(request.POST) if request.method == "POST" else fresh), None
    if request.method == "POST" and form.is_valid():
        try:
            key, secret = api_keys.issue(user=request.user, **form.cleaned_data)
            security_log.note(gettext_noop("API key made"), request.user, request, detail=str(key))
        except api_keys.IssuedBefore:
            text = _(
                "This key was made already, and it is shown only once. If you did not copy it, revoke it."
            )
            messages.info(request, text)
        form = fresh
    keys = ApiKey.objects.filter(user=request.user, revoked_at=None)
    context = {"form": form, "secret": secret, "keys": keys, "endpoint": request.build_absolute_uri("/v1")}
    return render(request, "accounts/api_keys.html", context, status=422 if form.errors else 200)


@signed_in("POST")
def revoke_api_key(request: SiteRequest, key_id: uuid.UUID) -> HttpResponse:
    key = get_object_or_404(ApiKey, pk=key_id, user=request.user)
    api_keys.revoke(key=key)
    security_log.note(gettext_noop("API key revoked"), request.user, request, detail=str(key))
    messages.success(request, _("The key “%(name)s” was revoked: it no longer works.") % {"name": key.name})
    return redirect("api_keys")
