"""The site's pages about clips: the composer and the gallery, and one clip with its files.

Each view parses, calls one operation and renders; htmx gets pieces of pages.
"""

import time
import uuid
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe
from django_htmx.http import HttpResponseClientRedirect, trigger_client_event

from accounts.auth import SiteRequest, address_of_page, signed_in
from accounts.models import UserLimits
from generation import sharing
from generation.errors import GenerationError
from generation.jobs import catalog, lifecycle, limits, submission
from generation.models import GenerationJob
from generation.web import gallery
from generation.web.forms import ComposerForm
from generation.web.presenters import cards, kept_jobs
from generation.web.public_views import absolute
from generation.web.streaming import serve_file, serve_video

WAITING_PROMPT = "waiting_prompt"
# After that the prompt of the front page is only put into the composer: its sender may have forgotten it.
WAITING_SECONDS = 3600
# Longer than any prompt that is accepted: the refusal is to say so.
MAX_WAITING = 10_000


def own_job(request: SiteRequest, job_id: uuid.UUID) -> GenerationJob:
    """Get the visitor's own clip; another person's is as unknown as one that never was."""
    return get_object_or_404(kept_jobs(user=request.user), pk=job_id)


def comes_from_dashboard(request: SiteRequest) -> bool:
    return bool(request.htmx) and urlsplit(address_of_page(request.htmx)).path == reverse("dashboard")


# --- The composer and the gallery -------------------------------------------------------------------------------------


@require_safe
def dashboard(request: HttpRequest) -> HttpResponseBase:
    """Show the composer and the gallery; to visitors, the front page."""
    if request.user.is_authenticated:
        return _workspace(request)
    context = catalog.samples_context(catalog.current_offer())
    context |= {
        "quotes": catalog.quotes(),
        "signup_credits": settings.SIGNUP_CREDITS,
        "must_confirm": settings.UNVERIFIED_SIGNUP_CREDITS < settings.SIGNUP_CREDITS,
    }
    context["site"] = absolute(request, "/").removesuffix("/")
    return render(request, "front.html", context)


@signed_in("GET", "HEAD")
def _workspace(request: SiteRequest) -> HttpResponse:
    if not request.htmx:
        form = _submit_waiting_prompt(request) or ComposerForm(initial=_prefill(request))
        return _dashboard(request, form)
    context = _gallery(request)
    context["cards"] = cards(context["jobs"])
    template = "generation/_cards.html" if context["after"] else "generation/_gallery.html"
    return render(request, template, context)


@require_http_methods(["GET", "POST"])
def start(request: HttpRequest) -> HttpResponse:
    """Carry the front page's prompt through sign-up: a form's is then submitted, a link's put into the composer."""
    if request.method == "POST":
        _keep_for_later(request)
        return redirect("dashboard" if request.user.is_authenticated else "account_signup")
    composer = f"{reverse('dashboard')}?{urlencode({'prompt': request.GET.get('prompt', '')})}"
    if request.user.is_authenticated:
        return redirect(composer)
    return redirect(f"{reverse('account_signup')}?{urlencode({'next': composer})}")


def _keep_for_later(request: HttpRequest) -> None:
    """Keep what was sent by a visitor who is not signed in, until they are."""
    waiting = {name: request.POST.get(name, "")[:MAX_WAITING] for name in ComposerForm.base_fields}
    waiting["key"] = waiting["key"] or uuid.uuid4().hex
    request.session[WAITING_PROMPT] = waiting | {"at": time.time()}


def _submit_waiting_prompt(request: SiteRequest) -> ComposerForm | None:
    """Submit the prompt that the visitor sent before signing in, once; return the composer that follows on it."""
    waiting = request.session.pop(WAITING_PROMPT, None) if request.method == "GET" else None
    if waiting is None:
        return None
    if time.time() - waiting["at"] > WAITING_SECONDS:
        return ComposerForm(initial=waiting)
    form = ComposerForm(waiting)
    return ComposerForm() if form.submit(user=request.user) else form  # it holds the refusal, and the prompt


@signed_in("GET")
def balance(request: SiteRequest) -> HttpResponse:
    return render(request, "_balance.html")


@signed_in("GET")
def submit_bar(request: SiteRequest) -> HttpResponse:
    """Render the composer's button and what stands beside it, as they are now."""
    form = ComposerForm(initial={"preset": request.GET.get("preset", "")})
    return render(request, "generation/_ready.html", _composer(request, form))


def submit(request: HttpRequest) -> HttpResponseBase:
    """Submit a prompt now, or after the next sign-in where the last one has ended."""
    if request.method == "POST" and not request.user.is_authenticated:
        _keep_for_later(request)
    return _submit(request)


@signed_in("GET", "HEAD", "POST")
def _submit(request: SiteRequest) -> HttpResponse:
    """Submit a prompt. The new clip's page follows; for htmx, its card as the first one of the gallery."""
    if request.method != "POST":
        return redirect("dashboard")
    form = ComposerForm(request.POST)
    job = form.submit(user=request.user)
    if job is None and not request.htmx:
        return _dashboard(request, form, status=422)
    if job is None:  # base.html lets htmx show 422
        return render(request, "generation/_composer.html", _composer(request, form), status=422)
    if not request.htmx:
        return redirect("video", job.pk)
    fresh = _composer(request, ComposerForm(initial={"preset": job.preset.name}))
    return render(request, "generation/_accepted.html", fresh | {"card": cards([job])[0]})


def _composer(
    request: SiteRequest, form: ComposerForm, *, jobs: list[GenerationJob] | None = None
) -> dict[str, Any]:
    """Build the composer's context: the presets with price and expected wait, the one chosen, the cooldown.

    jobs: those whose cards the same page shows; their places in line are read in the same queries.
    """
    agreed = UserLimits.of(request.user)
    quotes = catalog.quotes(user=request.user, agreed=agreed)
    wanted = form["preset"].value()
    chosen = next((quote for quote in quotes if quote.preset.name == wanted), None)
    default = next((quote for quote in quotes if quote.preset.is_default), quotes[0] if quotes else None)
    expected = {quote.preset.pk: quote.expected_seconds for quote in quotes}
    queue = catalog.read_queue(jobs or [], expected=expected)
    return {
        "form": form,
        "quotes": quotes,
        "chosen": chosen or default,
        "cheapest": min(quotes, key=lambda quote: quote.cost, default=None),
        "queue": queue,
        "expected": expected,
        "before_it": queue.seconds_to_join(),
        "cooldown": limits.cooldown_left(request.user, agreed),
        "key": uuid.uuid4().hex,
        "max_prompt": settings.MAX_PROMPT_LENGTH,
    }


def _gallery(request: SiteRequest) -> dict[str, Any]:
    """Build the gallery's context: a page of clips behind the one that `?after=` names, if any."""
    search = gallery.Filter.from_query(request.GET)
    # The clip may have been deleted meanwhile; with an unknown one the gallery begins at its start.
    after = GenerationJob.objects.filter(user=request.user).named(request.GET.get("after", "")).first()
    found = search.apply(kept_jobs(user=request.user))
    jobs, has_more = gallery.paginate(found, after=after, limit=gallery.PAGE_SIZE, order="desc")
    older = search.query(after=jobs[-1].public_id) if has_more else ""
    return {"filter": search, "after": after, "jobs": jobs, "older": older}


def _dashboard(request: SiteRequest, form: ComposerForm, *, status: int = 200) -> HttpResponse:
    context = _gallery(request)
    context |= _composer(request, form, jobs=context["jobs"])
    context["cards"] = cards(context["jobs"], expected=context["expected"], queue=context["queue"])
    context |= catalog.samples_context(catalog.offer_of(context["queue"].nodes))
    return render(request, "generation/dashboard.html", context, status=status)


def _prefill(request: SiteRequest) -> dict[str, Any]:
    """Fill the composer from a link: `?prompt=`, or `?remix=` one of the visitor's own clips."""
    original = request.GET.get("remix", "")
    if not original:
        return {"prompt": request.GET.get("prompt", "")}
    job = get_object_or_404(kept_jobs(user=request.user).named(original))
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "seed": job.seed,
        "preset": job.preset.name,
        "remix": job.public_id,
    }


# --- One clip ---------------------------------------------------------------------------------------------------------


@signed_in("GET", "HEAD")
def video(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Show one clip: its progress, or the player with all that is known about it."""
    job = own_job(request, job_id)
    context = {"card": cards([job])[0], "receipt": lifecycle.entries_of(job)} | _sharing(request, job)
    return render(request, "generation/video.html", context)


@signed_in("GET")
def card(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Render one clip's card alone, for pages whose live updates are down."""
    return _card(request, job_id)


@signed_in("POST")
def cancel(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    job = own_job(request, job_id)
    try:
        lifecycle.cancel(job=job, actor=request.user)
    except GenerationError as error:
        messages.error(request, error.message)
    if not request.htmx:
        return redirect("video", job.pk)
    return trigger_client_event(_card(request, job_id, with_messages=True), "wallet")


@signed_in("POST")
def retry(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Submit the same clip again; a second click finds the first one's, and says so where that has ended."""
    job = own_job(request, job_id)
    from_dashboard = comes_from_dashboard(request)
    try:
        again = submission.submit(
            user=request.user,
            source=GenerationJob.Source.WEB,
            idempotency_key=f"retry-{job.id.hex}",
            retry=True,
            **submission.same_again(job),
        )
    except GenerationError as error:
        messages.error(request, error.message)
        return (
            render(request, "_messages.html", {"oob": True}) if from_dashboard else redirect("video", job.pk)
        )
    if not again.is_live:
        messages.info(request, _("You tried this one again already: here it is."))
        return _redirect(request, reverse("video", args=[again.pk]))
    if not from_dashboard:
        return redirect("video", again.pk)
    response = render(request, "generation/_another.html", {"card": cards([again])[0]})
    return trigger_client_event(response, "wallet")


@signed_in("GET", "HEAD", "POST")
def delete(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Ask, then delete. A second click finds the clip deleted, and says the same."""
    if request.method != "POST":
        template = "_delete.html" if request.htmx else "delete.html"
        return render(request, f"generation/{template}", {"job": own_job(request, job_id)})
    job = get_object_or_404(GenerationJob, pk=job_id, user=request.user)
    try:
        lifecycle.delete(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
        return _redirect(request, reverse("video", args=[job.pk]))
    messages.success(request, _("The video was deleted."))
    if comes_from_dashboard(request) and kept_jobs(user=request.user).exists():
        response = render(request, "_messages.html", {"oob": True})
        return trigger_client_event(response, "deleted", {"job": job.id.hex})
    return _redirect(request, reverse("dashboard"))


@signed_in("POST")
def share(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    """Make the clip's link, or show the one there is."""
    job = own_job(request, job_id)
    try:
        sharing.share(job=job)
    except GenerationError as error:
        messages.error(request, error.message)
    return _share_box(request, job)


@signed_in("POST")
def unshare(request: SiteRequest, job_id: uuid.UUID) -> HttpResponse:
    job = own_job(request, job_id)
    sharing.revoke(job=job)
    return _share_box(request, job)


@signed_in("GET", "HEAD")
def video_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    return serve_video(request, own_job(request, job_id))


@signed_in("GET", "HEAD")
def poster_file(request: SiteRequest, job_id: uuid.UUID) -> HttpResponseBase:
    return serve_file(request, str(own_job(request, job_id).poster), content_type="image/jpeg")


def _card(request: SiteRequest, job_id: uuid.UUID, *, with_messages: bool = False) -> HttpResponse:
    context = {"card": cards([own_job(request, job_id)])[0], "with_messages": with_messages}
    return render(request, "generation/_card.html", context)


def _redirect(request: SiteRequest, address: str) -> HttpResponse:
    """Send the whole browser there, also when htmx asked."""
    return HttpResponseClientRedirect(address) if request.htmx else redirect(address)


def _sharing(request: SiteRequest, job: GenerationJob) -> dict[str, Any]:
    link = sharing.link_of(job)
    address = absolute(request, reverse("shared_video", args=[link.token])) if link else ""
    return {"job": job, "shared_address": address}


def _share_box(request: SiteRequest, job: GenerationJob) -> HttpResponse:
    if not request.htmx:
        return redirect(f"{reverse('video', args=[job.pk])}#share")
    return render(request, "generation/_share.html", _sharing(request, job) | {"opened": True})
