"""Pages of a shared clip, for visitors without an account. Nothing here says whose clip it is."""

from typing import TypeVar
from urllib.parse import urlsplit

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
from generation.web.streaming import serve_file, serve_video

R = TypeVar("R", bound=HttpResponseBase)


class ReportForm(forms.Form):
    about = forms.ChoiceField(choices=Report.About.choices, widget=forms.RadioSelect)
    words = forms.CharField(max_length=1000, required=False, widget=forms.Textarea(attrs={"rows": 3}))


@require_safe
def shared_video(request: HttpRequest, token: str) -> HttpResponse:
    """Show the clip, its prompt, and what chats need to unfurl the link."""
    context = {
        "job": _find(token),
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
    return _unlisted(serve_video(request, _find(token)))


@require_safe
def shared_poster(request: HttpRequest, token: str) -> HttpResponseBase:
    return _unlisted(serve_file(request, str(_find(token).poster), content_type="image/jpeg"))


@require_http_methods(["GET", "HEAD", "POST"])
def report_video(request: HttpRequest, token: str) -> HttpResponse:
    """Show the form, then thanks. One address reports a few times an hour."""
    job = _find(token)
    form = ReportForm(request.POST or None)
    sent = request.method == "POST" and form.is_valid()
    if sent:
        moderation.report(job=job, address=address_of(request), **form.cleaned_data)
    context = {"form": form, "sent": sent, "token": token, "job": job}
    return _unlisted(render(request, "generation/report.html", context))


def absolute(request: HttpRequest, path: str) -> str:
    """Make the full address of a path: on SITE_URL, whose scheme a proxy may hide, or on the host that was asked."""
    if urlsplit(settings.SITE_URL).netloc == request.get_host():
        return str(settings.SITE_URL) + path
    return request.build_absolute_uri(path)


def _find(token: str) -> GenerationJob:
    job = sharing.find(token)
    if job is None:
        raise Http404
    return job


def _unlisted(response: R) -> R:
    """Keep search engines from making the link known."""
    response["X-Robots-Tag"] = "noindex, nofollow"
    return response
