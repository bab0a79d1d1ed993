"""Whoever sees a shared video may report it, without an account."""

from typing import TypeVar, cast
from urllib.parse import urlsplit

from allauth.core import ratelimit
from django import forms
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.views.decorators.http import require_http_methods, require_safe

from accounts.staff.actor import address_of
from generation import sharing
from generation.models import GenerationJob, Report
from generation.staff import moderation
from generation.web.streaming import filename_for, serve_file

Answer = TypeVar("Answer", bound=HttpResponseBase)


@require_safe
def shared_video(request: HttpRequest, token: str) -> HttpResponse:
    """The clip, its prompt, and what chats need to unfurl the link."""
    job = _shown(token)
    context = {
        "job": job,
        "token": token,
        "address": absolute(request, reverse("shared_video", args=[token])),
        "video_address": absolute(request, reverse("shared_file", args=[token])),
        "poster_address": absolute(request, reverse("shared_poster", args=[token])),
    }
    response = render(request, "generation/shared.html", context)
    add_never_cache_headers(response)
    return _unlisted(response)


@require_safe
def shared_file(request: HttpRequest, token: str) -> HttpResponseBase:
    """The MP4, in ranges when asked for; `?download` makes browsers save it."""
    job = _shown(token)
    download = "download" in request.GET
    response = serve_file(request, str(job.video), filename=filename_for(job.prompt), as_attachment=download)
    return _asked_for_again(response)


@require_safe
def shared_poster(request: HttpRequest, token: str) -> HttpResponseBase:
    return _asked_for_again(serve_file(request, str(_shown(token).poster), content_type="image/jpeg"))


def absolute(request: HttpRequest, path: str) -> str:
    """The whole address of a path: on SITE_URL, whose scheme a proxy may hide, or on the host that was asked."""
    if urlsplit(settings.SITE_URL).netloc == request.get_host():
        return str(settings.SITE_URL) + path
    return request.build_absolute_uri(path)


def _shown(token: str) -> GenerationJob:
    job = sharing.find(token)
    if job is None:
        raise Http404
    return job


def _asked_for_again(response: HttpResponseBase) -> HttpResponseBase:
    """Kept by browsers, but asked for each time: a revoked link stops to work at once."""
    if response.status_code in (200, 206, 304):
        response["Cache-Control"] = "private, no-cache"
    return _unlisted(response)


def _unlisted(response: Answer) -> Answer:
    """Whoever has the link may watch; search engines shall not make it known."""
    response["X-Robots-Tag"] = "noindex, nofollow"
    return response


# What anybody sees of a clip whose owner made a link to it. Nothing here says whose it is.


class ReportForm(forms.Form):
    about = forms.ChoiceField(choices=Report.About.choices, widget=forms.RadioSelect)
    words = forms.CharField(max_length=1000, required=False, widget=forms.Textarea(attrs={"rows": 3}))


@require_http_methods(["GET", "HEAD", "POST"])
def report_video(request: HttpRequest, token: str) -> HttpResponse:
    """The form, and after it a word of thanks. One address reports a few times an hour."""
    job = sharing.find(token)
    if job is None:
        raise Http404
    form = ReportForm(request.POST or None)
    sent = request.method == "POST" and form.is_valid()
    if sent:
        if too_many := ratelimit.consume_or_429(request, action="report_video"):
            return cast(HttpResponse, too_many)
        moderation.report(job=job, address=address_of(request), **form.cleaned_data)
    response = render(
        request, "generation/report.html", {"form": form, "sent": sent, "token": token, "job": job}
    )
    response["X-Robots-Tag"] = "noindex, nofollow"
    return response
