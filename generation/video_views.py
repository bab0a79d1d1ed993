"""One clip: its page, its files, and what its owner can do with it."""

import uuid

from django.contrib import messages
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect, trigger_client_event

from generation import lifecycle, sharing
from generation.cards import cards
from generation.errors import GenerationError
from generation.models import GenerationJob
from generation.receipts import receipt_of
from generation.shared_views import absolute
from generation.site_request import SiteRequest, comes_from, own_job, own_jobs, signed_in
from generation.streaming import filename_for, serve_file


@require_safe
@signed_in
def video(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """One clip: its progress, or the player with all that is known about it."""
    job = own_job(request, job_id)
    context = {
        "card": cards([job])[0],
        "job": job,
        "receipt": receipt_of(job),
        "shared_address": _shared_address(request, job),
    }
    return render(request, "generation/video.html", context)


@require_GET
@signed_in
def card(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """One clip's card alone, for pages whose live updates are down."""
    return _card(request, own_job(request, job_id))


@require_POST
@signed_in
def cancel(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    job = own_job(request, job_id)
    try:
        lifecycle.cancel(job=job, actor=request.user)
    except GenerationError as error:
        messages.error(request, error.message)
    if not request.htmx:
        return redirect("video", job.pk)
    answer = _card(request, own_job(request, job_id), with_messages=True)
    return trigger_client_event(answer, "wallet")


@require_POST
@signed_in
def retry(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """The same wish again, as a new clip; a second click finds the same one."""
    job = own_job(request, job_id)
    try:
        again = lifecycle.submit(
            user=request.user,
            prompt=job.prompt,
            source=GenerationJob.Source.WEB,
            preset=job.preset.name,
            seed=job.seed,
            negative_prompt=job.negative_prompt,
            idempotency_key=f"retry-{job.id.hex}",
        )
    except GenerationError as error:
        messages.error(request, error.message)
        if comes_from(request, reverse("dashboard")):
            return render(request, "_messages.html", {"oob": True})
        return redirect("video", job.pk)
    if comes_from(request, reverse("dashboard")):
        answer = render(request, "generation/_another.html", {"card": cards([again])[0]})
        return trigger_client_event(answer, "wallet")
    return redirect("video", again.pk)


@signed_in
def delete(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Ask, then delete."""
    job = own_job(request, job_id)
    if request.method != "POST":
        template = "_delete.html" if request.htmx else "delete.html"
        return render(request, f"generation/{template}", {"job": job})
    try:
        lifecycle.delete(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
        return _gone_to(request, reverse("video", args=[job.pk]))
    messages.success(request, _("The video was deleted."))
    if comes_from(request, reverse("dashboard")) and own_jobs(request).exists():
        answer = render(request, "_messages.html", {"oob": True})
        return trigger_client_event(answer, "deleted", {"job": job.id.hex})
    return _gone_to(request, reverse("dashboard"))


@require_POST
@signed_in
def share(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Make the clip's link, or show the one there is."""
    job = own_job(request, job_id)
    try:
        sharing.share(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
    return _share_box(request, job)


@require_POST
@signed_in
def unshare(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """The link works no more, for nobody."""
    job = own_job(request, job_id)
    sharing.revoke(job=job)
    return _share_box(request, job)


@require_safe
@signed_in
def video_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    """The MP4, in ranges when asked for; `?download` makes browsers save it, named after the prompt."""
    job = own_job(request, job_id)
    download = "download" in request.GET
    return serve_file(request, str(job.video), filename=filename_for(job.prompt), as_attachment=download)


@require_safe
@signed_in
def poster_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    job = own_job(request, job_id)
    return serve_file(request, str(job.poster), content_type="image/jpeg")


def _card(request: SiteRequest, job: GenerationJob, *, with_messages: bool = False) -> HttpResponse:
    context = {"card": cards([job])[0], "with_messages": with_messages}
    return render(request, "generation/_card.html", context)


def _gone_to(request: SiteRequest, address: str) -> HttpResponse:
    """The whole browser goes there, also when htmx asked."""
    return HttpResponseClientRedirect(address) if request.htmx else redirect(address)


def _share_box(request: SiteRequest, job: GenerationJob) -> HttpResponse:
    if not request.htmx:
        return redirect(f"{reverse('video', args=[job.pk])}#share")
    context = {"job": job, "shared_address": _shared_address(request, job), "opened": True}
    return render(request, "generation/_share.html", context)


def _shared_address(request: SiteRequest, job: GenerationJob) -> str:
    """Where anybody may watch it; empty when it is not shared."""
    link = sharing.link_of(job)
    return absolute(request, reverse("shared_video", args=[link.token])) if link else ""
