"""The site's pages about clips. Each view parses, calls one operation and renders; pieces of pages go to htmx."""

import functools
import uuid
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.views.decorators.http import require_GET, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect, trigger_client_event
from django_htmx.middleware import HtmxDetails

from accounts.models import User
from generation import admission, lifecycle, pricing, sharing
from generation.cards import cards, owned_jobs
from generation.errors import GenerationError
from generation.forms import ComposerForm
from generation.models import GenerationJob, JobAttempt, JobQuerySet
from generation.shared_views import absolute
from generation.streaming import filename_for, serve_file

P = ParamSpec("P")

PAGE_SIZE = 24
MAX_PAGE = 10_000
SAMPLES = [
    "A red fox trotting through fresh snow at dawn, slow tracking shot",
    "Waves rolling onto a black sand beach, seen from a drone",
    "A paper boat drifting down a rainy city street, close-up",
]


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


# --- The dashboard ----------------------------------------------------------------------------------------------------


@require_safe
def dashboard(request: HttpRequest) -> HttpResponseBase:
    """The composer and the gallery; for visitors, what this is."""
    if not request.user.is_authenticated:
        return render(
            request,
            "front.html",
            {"quotes": pricing.quotes(), "samples": SAMPLES, "signup_credits": settings.SIGNUP_CREDITS},
        )
    return _workspace(request)


@signed_in
def _workspace(request: SiteRequest) -> HttpResponse:
    return _dashboard(
        request, ComposerForm(initial=_prefill(request)), page=_page_number(request.GET.get("page", ""))
    )


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
    return render(request, "generation/_submit_bar.html", _composer(request, ComposerForm()))


# --- One clip ---------------------------------------------------------------------------------------------------------


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
    fresh = _composer(request, ComposerForm(initial={"preset": job.preset.name}))
    return render(request, "generation/_accepted.html", fresh | {"card": cards([job])[0]})


@require_safe
@signed_in
def video(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """One clip: its progress, or the player with all that is known about it."""
    job = _own_job(request, job_id)
    context = {
        "card": cards([job])[0],
        "job": job,
        "receipt": lifecycle.receipt(job),
        "model": _model_of(job),
        "shared_address": _shared_address(request, job),
    }
    return render(request, "generation/video.html", context)


@require_GET
@signed_in
def card(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """One clip's card alone, for pages whose live updates are down."""
    return _card(request, _own_job(request, job_id))


@require_POST
@signed_in
def cancel(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    job = _own_job(request, job_id)
    try:
        job = lifecycle.cancel(job=job, actor=request.user)
    except GenerationError as error:
        messages.error(request, error.message)
        job = _own_job(request, job_id)
    if not request.htmx:
        return redirect("video", job.pk)
    return trigger_client_event(_card(request, job, with_messages=True), "wallet")


@require_POST
@signed_in
def retry(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """The same wish again, as a new clip; a second click finds the same one."""
    job = _own_job(request, job_id)
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
        return redirect("video", job.pk)
    return redirect("video", again.pk)


@signed_in
def delete(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Ask, then delete."""
    job = _own_job(request, job_id)
    if request.method != "POST":
        return render(request, "generation/delete.html", {"job": job})
    try:
        lifecycle.delete(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
        return redirect("video", job.pk)
    messages.success(request, "The video was deleted.")
    return redirect("dashboard")


@require_POST
@signed_in
def share(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Make the clip's link, or show the one there is."""
    job = _own_job(request, job_id)
    try:
        sharing.share(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
    return _share_box(request, job)


@require_POST
@signed_in
def unshare(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """The link works no more, for nobody."""
    job = _own_job(request, job_id)
    sharing.revoke(job=job)
    return _share_box(request, job)


@require_safe
@signed_in
def video_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    """The MP4, in ranges when asked for; `?download` makes browsers save it, named after the prompt."""
    job = _own_job(request, job_id)
    download = "download" in request.GET
    return serve_file(request, str(job.video), filename=filename_for(job.prompt), as_attachment=download)


@require_safe
@signed_in
def poster_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    job = _own_job(request, job_id)
    return serve_file(request, str(job.poster), content_type="image/jpeg")


# --- Behind the pages -------------------------------------------------------------------------------------------------


def _own_job(request: SiteRequest, job_id: uuid.UUID) -> GenerationJob:
    """The visitor's own clip; somebody else's is as unknown as one that never was."""
    return get_object_or_404(_own_jobs(request), pk=job_id)


def _own_jobs(request: SiteRequest) -> JobQuerySet:
    return owned_jobs().filter(user=request.user)


def _dashboard(request: SiteRequest, form: ComposerForm, *, page: int = 1, status: int = 200) -> HttpResponse:
    composer = _composer(request, form)
    newest = _own_jobs(request).order_by("-created_at", "-id")
    # One more than is shown tells whether there is an older page, without counting them all.
    jobs = list(newest[(page - 1) * PAGE_SIZE : page * PAGE_SIZE + 1])
    expected = {quote.preset.pk: quote.expected_seconds for quote in composer["quotes"]}
    context = {
        "cards": cards(jobs[:PAGE_SIZE], expected=expected),
        "page": page,
        "has_older": len(jobs) > PAGE_SIZE,
        "samples": SAMPLES,
    }
    return render(request, "generation/dashboard.html", composer | context, status=status)


def _composer(request: SiteRequest, form: ComposerForm) -> dict[str, Any]:
    """What the composer shows: the presets with price and expected wait, the one chosen, and what stands in the way."""
    quotes = pricing.quotes(user=request.user)
    wanted = form["preset"].value()
    chosen = next((quote for quote in quotes if quote.preset.name == wanted), None)
    default = next((quote for quote in quotes if quote.preset.is_default), quotes[0] if quotes else None)
    return {
        "form": form,
        "quotes": quotes,
        "chosen": chosen or default,
        "cooldown": admission.cooldown_left(request.user),
        "key": uuid.uuid4().hex,
        "max_prompt": settings.MAX_PROMPT_LENGTH,
    }


def _prefill(request: SiteRequest) -> dict[str, Any]:
    """What a link puts into the composer: `?prompt=`, or `?remix=` one of the visitor's own clips."""
    wanted = request.GET.get("remix", "")
    if not wanted:
        return {"prompt": request.GET.get("prompt", "")}
    job = get_object_or_404(_own_jobs(request).named(wanted))
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
        return render(request, "generation/_composer.html", _composer(request, form), status=422)
    return _dashboard(request, form, status=422)


def _card(request: SiteRequest, job: GenerationJob, *, with_messages: bool = False) -> HttpResponse:
    context = {"card": cards([job])[0], "with_messages": with_messages}
    return render(request, "generation/_card.html", context)


def _share_box(request: SiteRequest, job: GenerationJob) -> HttpResponse:
    if not request.htmx:
        return redirect(f"{reverse('video', args=[job.pk])}#share")
    context = {"job": job, "shared_address": _shared_address(request, job)}
    return render(request, "generation/_share.html", context)


def _shared_address(request: SiteRequest, job: GenerationJob) -> str:
    """Where anybody may watch it; empty when it is not shared."""
    link = sharing.link_of(job)
    return absolute(request, reverse("shared_video", args=[link.token])) if link else ""


def _model_of(job: GenerationJob) -> str:
    """The model that makes it or made it, as its node names it."""
    if job.current_attempt_id is None:
        return ""
    return JobAttempt.objects.select_related("node").get(pk=job.current_attempt_id).node.backend


def _page_number(text: str) -> int:
    return min(max(1, int(text)), MAX_PAGE) if text.isascii() and text.isdigit() and len(text) < 9 else 1


def _ask_to_sign_in(request: HttpRequest) -> HttpResponse:
    htmx = cast("SiteRequest", request).htmx
    if htmx:
        return HttpResponseClientRedirect(f"{reverse('account_login')}?{urlencode({'next': _page_of(htmx)})}")
    return redirect_to_login(request.get_full_path() if request.method == "GET" else reverse("dashboard"))


def _page_of(htmx: HtmxDetails) -> str:
    """Where htmx says the browser is, without scheme and host; any header can claim anything."""
    try:
        return urlsplit(htmx.current_url_abs_path or reverse("dashboard")).geturl()
    except ValueError:
        return reverse("dashboard")
