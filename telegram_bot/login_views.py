"""Ways in from a chat: signing in by a one-time link, and watching one video by a signed one."""

from typing import TypeVar

from allauth.account.internal.flows.login import record_authentication
from allauth.account.utils import perform_login
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from generation.models import GenerationJob
from generation.streaming import filename_for, serve_file
from telegram_bot import links, signing_in
from telegram_bot.models import LoginLink

Answer = TypeVar("Answer", bound=HttpResponseBase)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def login(request: HttpRequest, token: str) -> HttpResponse:
    """GET asks, so that a preview burns nothing; POST signs in, once. A second step is asked for as ever."""
    if request.method != "POST":
        link = signing_in.find(token)
        return _too_late(request) if link is None else _unlisted(_asks(request, link, token))
    user = signing_in.redeem(token)
    if user is None:
        return _too_late(request)
    record_authentication(request, user, method="telegram")
    response: HttpResponse = perform_login(request, user)
    return response


def _asks(request: HttpRequest, link: LoginLink, token: str) -> HttpResponse:
    return render(request, "telegram/login.html", {"link": link, "token": token})


def _too_late(request: HttpRequest) -> HttpResponse:
    why = _("This link was used or is too old. Send /login to the bot for a new one.")
    return _unlisted(render(request, "telegram/gone.html", {"why": why}, status=410))


@require_safe
@never_cache
def video(request: HttpRequest, signed: str) -> HttpResponse:
    """A video that was too large for Telegram, for whoever has the link."""
    try:
        job = _shown(signed)
    except signing.SignatureExpired:
        why = _("This link is too old. Send /login to the bot: your video is there.")
        return _unlisted(render(request, "telegram/gone.html", {"why": why}, status=410))
    return _unlisted(render(request, "telegram/video.html", {"job": job, "signed": signed}))


@require_safe
def video_file(request: HttpRequest, signed: str) -> HttpResponseBase:
    """The MP4, in ranges when asked for; `?download` makes browsers save it."""
    try:
        job = _shown(signed)
    except signing.SignatureExpired:
        raise Http404 from None
    return _unlisted(
        serve_file(
            request,
            str(job.video),
            filename=filename_for(job.prompt),
            as_attachment="download" in request.GET,
        )
    )


def _shown(signed: str) -> GenerationJob:
    """Raises Http404, signing.SignatureExpired."""
    try:
        job_id = links.video_behind(signed)
    except signing.SignatureExpired:
        raise
    except (signing.BadSignature, ValueError):
        raise Http404 from None
    shown = GenerationJob.objects.filter(deleted_at=None, user__is_active=True)
    job = shown.filter(pk=job_id, state=GenerationJob.State.COMPLETED).first()
    if job is None:
        raise Http404
    return job


def _unlisted(response: Answer) -> Answer:
    response["X-Robots-Tag"] = "noindex, nofollow"
    # The address is a secret: it must not travel on to where a link on the page leads.
    response["Referrer-Policy"] = "no-referrer"
    return response
