"""What every page of the site shows: the balance in the header."""

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
from generation.web.presenters import owned_jobs

P = ParamSpec("P")


class SiteRequest(HttpRequest):
    """A request of somebody who is signed in."""

    user: User
    htmx: HtmxDetails


def signed_in(
    view: Callable[Concatenate[SiteRequest, P], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
    """Ask for a sign-in first; a piece of a page is answered by sending the whole browser there. Nothing is cached."""

    @functools.wraps(view)
    def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return _ask_to_sign_in(request)
        response = view(cast("SiteRequest", request), *args, **kwargs)
        if not response.has_header("Cache-Control"):
            add_never_cache_headers(response)
        return response

    return wrapped


def own_jobs(request: SiteRequest) -> JobQuerySet:
    """The visitor's clips, but for deleted ones."""
    return owned_jobs().filter(user=request.user)


def own_job(request: SiteRequest, job_id: uuid.UUID) -> GenerationJob:
    """The visitor's own clip; somebody else's is as unknown as one that never was."""
    return get_object_or_404(own_jobs(request), pk=job_id)


def comes_from(request: SiteRequest, path: str) -> bool:
    """Whether htmx sends this from the page of that path."""
    return bool(request.htmx) and urlsplit(page_of(request.htmx)).path == path


def page_of(htmx: HtmxDetails) -> str:
    """Where htmx says the browser is, without scheme and host; any header can claim anything."""
    try:
        return urlsplit(htmx.current_url_abs_path or reverse("dashboard")).geturl()
    except ValueError:
        return reverse("dashboard")


def _ask_to_sign_in(request: HttpRequest) -> HttpResponse:
    htmx = cast("SiteRequest", request).htmx
    if htmx:
        return HttpResponseClientRedirect(f"{reverse('account_login')}?{urlencode({'next': page_of(htmx)})}")
    return redirect_to_login(request.get_full_path() if request.method == "GET" else reverse("dashboard"))


# Requests of the site's own pages: from somebody signed in, from a browser or from htmx in an open page.


def wallet(request: HttpRequest) -> dict[str, Any]:
    """`wallet`: the visitor's CreditAccount, read when a template first asks for it: the admin pays nothing for it."""
    return {
        "wallet": SimpleLazyObject(lambda: CreditAccount.objects.get(user=cast("User", request.user))),
        "can_send_email": bool(settings.EMAIL_HOST),
    }
