"""One clip: its page, its files, and what its owner can do with it."""

import uuid
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect, trigger_client_event

from generation import sharing
from generation.errors import GenerationError
from generation.jobs import catalog, lifecycle, limits, submission
from generation.models import GenerationJob
from generation.web import gallery
from generation.web.forms import ComposerForm
from generation.web.presenters import cards
from generation.web.public_views import absolute
from generation.web.request import SiteRequest, comes_from, own_job, own_jobs, signed_in
from generation.web.streaming import filename_for, serve_file


@require_safe
def dashboard(request: HttpRequest) -> HttpResponseBase:
    """The composer and the gallery; for visitors, what this is."""
    if not request.user.is_authenticated:
        return render(
            request,
            "front.html",
            catalog.context(catalog.current())
            | {"quotes": catalog.quotes(), "signup_credits": settings.SIGNUP_CREDITS},
        )
    return _workspace(request)


@signed_in
def _workspace(request: SiteRequest) -> HttpResponse:
    if request.htmx:
        return _gallery(request)
    return _dashboard(request, ComposerForm(initial=_prefill(request)))


@require_GET
def start(request: HttpRequest) -> HttpResponse:
    """The front page's prompt: carried through sign-up into the composer."""
    composer = f"{reverse('dashboard')}?{urlencode({'prompt': request.GET.get('prompt', '')})}"
    if request.user.is_authenticated:
        return redirect(composer)
    return redirect(f"{reverse('account_signup')}?{urlencode({'next': composer})}")


@require_GET
@signed_in
def balance(request: SiteRequest) -> HttpResponse:
    """The header's balance alone."""
    return render(request, "_balance.html")


@require_GET
@signed_in
def submit_bar(request: SiteRequest) -> HttpResponse:
    """The composer's button and what stands beside it, as they are now."""
    form = ComposerForm(initial={"preset": request.GET.get("preset", "")})
    return render(request, "generation/_ready.html", composer(request, form))


@signed_in
def submit(request: SiteRequest) -> HttpResponse:
    """Accept a prompt. The new clip's page follows; for htmx, its card as the first one of the gallery."""
    if request.method != "POST":
        return redirect("dashboard")
    form = ComposerForm(request.POST)
    job = form.submit(user=request.user)
    if job is None:
        return _refused(request, form)
    if not request.htmx:
        return redirect("video", job.pk)
    fresh = composer(request, ComposerForm(initial={"preset": job.preset.name}))
    return render(request, "generation/_accepted.html", fresh | {"card": cards([job])[0]})


def composer(
    request: SiteRequest, form: ComposerForm, *, jobs: list[GenerationJob] | None = None
) -> dict[str, Any]:
    """What the composer shows: the presets with price and expected wait, the one chosen, and what stands in the way.

    The line is looked at with the places of `jobs`, for those who show cards as well.
    """
    quotes = catalog.quotes(user=request.user)
    wanted = form["preset"].value()
    chosen = next((quote for quote in quotes if quote.preset.name == wanted), None)
    default = next((quote for quote in quotes if quote.preset.is_default), quotes[0] if quotes else None)
    queue = catalog.now(jobs or [])
    expected = {quote.preset.pk: quote.expected_seconds for quote in quotes}
    return {
        "form": form,
        "quotes": quotes,
        "chosen": chosen or default,
        "cheapest": min(quotes, key=lambda quote: quote.cost, default=None),
        "queue": queue,
        "expected": expected,
        "before_it": queue.seconds_to_join(expected),
        "cooldown": limits.cooldown_left(request.user),
        "key": uuid.uuid4().hex,
        "max_prompt": settings.MAX_PROMPT_LENGTH,
    }


def _dashboard(request: SiteRequest, form: ComposerForm, *, status: int = 200) -> HttpResponse:
    wanted, after = gallery.Filter.from_query(request.GET), _cursor(request)
    page = gallery.page(own_jobs(request), wanted, after=after)
    shown = composer(request, form, jobs=page.jobs)
    context = shown | {
        "cards": cards(page.jobs, expected=shown["expected"], queue=shown["queue"]),
        "page": page,
        "filter": wanted,
        "after": after,
    }
    context |= catalog.context(catalog.of(shown["queue"].nodes))
    return render(request, "generation/dashboard.html", context, status=status)


def _gallery(request: SiteRequest) -> HttpResponse:
    """The gallery alone, or the cards that follow one."""
    wanted, after = gallery.Filter.from_query(request.GET), _cursor(request)
    page = gallery.page(own_jobs(request), wanted, after=after)
    template = "generation/_cards.html" if after else "generation/_gallery.html"
    return render(request, template, {"cards": cards(page.jobs), "page": page, "filter": wanted})


def _cursor(request: SiteRequest) -> GenerationJob | None:
    """The clip that the page begins behind. It may have been deleted meanwhile; an unknown one is none."""
    return GenerationJob.objects.filter(user=request.user).named(request.GET.get("after", "")).first()


def _prefill(request: SiteRequest) -> dict[str, Any]:
    """What a link puts into the composer: `?prompt=`, or `?remix=` one of the visitor's own clips."""
    wanted = request.GET.get("remix", "")
    if not wanted:
        return {"prompt": request.GET.get("prompt", "")}
    job = get_object_or_404(own_jobs(request).named(wanted))
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "preset": job.preset.name,
        "remix": job.public_id,
    }


def _refused(request: SiteRequest, form: ComposerForm) -> HttpResponse:
    """The composer again with the message and everything that was typed; 422 is what htmx is told to show."""
    if request.htmx:
        return render(request, "generation/_composer.html", composer(request, form), status=422)
    return _dashboard(request, form, status=422)


# The composer and the gallery. Each view parses, calls one operation and renders; pieces of pages go to htmx.


@require_safe
@signed_in
def video(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """One clip: its progress, or the player with all that is known about it."""
    job = own_job(request, job_id)
    context = {
        "card": cards([job])[0],
        "job": job,
        "receipt": lifecycle.entries_of(job),
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
        again = submission.submit(
            user=request.user,
            source=GenerationJob.Source.WEB,
            idempotency_key=f"retry-{job.id.hex}",
            **submission.same_again(job),
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
