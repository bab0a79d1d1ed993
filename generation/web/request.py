"""Requests of the site's own pages: from a signed-in user, by a browser or by htmx in an open page."""

import functools
import uuid
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.functional import SimpleLazyObject
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from accounts.models import CreditAccount, User
from generation.models import GenerationJob, JobQuerySet
from generation.web.presenters import kept_jobs

P = ParamSpec("P")


class SiteRequest(HttpRequest):
    """A request of a signed-in user."""

    user: User
    htmx: HtmxDetails


def signed_in(
    view: Callable[Concatenate[SiteRequest, P], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
    """Require a sign-in; a request of htmx sends the whole browser there. Nothing is cached."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return _redirect_to_sign_in(request)
        response = view(cast("SiteRequest", request), *args, **kwargs)
        if not response.has_header("Cache-Control"):
            add_never_cache_headers(response)
        return response

    return wrapped


def own_jobs(request: SiteRequest) -> JobQuerySet:
    """Select the visitor's clips without deleted ones."""
    return kept_jobs(user=request.user)


def own_job(request: SiteRequest, job_id: uuid.UUID) -> GenerationJob:
    """Get the visitor's own clip; another person's is as unknown as one that never was."""
    return get_object_or_404(own_jobs(request), pk=job_id)


def comes_from(request: SiteRequest, path: str) -> bool:
    """Check whether htmx sends this from the page of that path."""
    return bool(request.htmx) and urlsplit(_address_of(request.htmx)).path == path


def wallet(request: HttpRequest) -> dict[str, Any]:
    """Provide `wallet` to templates, read when one first asks for it: the admin pays nothing for it."""
    return {
        "wallet": SimpleLazyObject(lambda: CreditAccount.objects.get(user=cast("User", request.user))),
        "can_send_email": bool(settings.EMAIL_HOST),
    }


def _address_of(htmx: HtmxDetails) -> str:
    """Return the browser's address without scheme and host, as htmx claims it; any header can claim anything."""
    try:
        return urlsplit(htmx.current_url_abs_path or reverse("dashboard")).geturl()
    except ValueError:
        return reverse("dashboard")


def _redirect_to_sign_in(request: HttpRequest) -> HttpResponse:
    htmx = cast("SiteRequest", request).htmx
    if htmx:
        return HttpResponseClientRedirect(
            f"{reverse('account_login')}?{urlencode({'next': _address_of(htmx)})}"
        )
    return redirect_to_login(request.get_full_path() if request.method == "GET" else reverse("dashboard"))
