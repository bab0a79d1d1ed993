"""The composer and the gallery. Each view parses, calls one operation and renders; pieces of pages go to htmx."""

import uuid
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_safe

from generation import admission, gallery, line, offer, pricing, samples
from generation.cards import cards
from generation.forms import ComposerForm
from generation.models import GenerationJob
from generation.site_request import SiteRequest, own_jobs, signed_in


@require_safe
def dashboard(request: HttpRequest) -> HttpResponseBase:
    """The composer and the gallery; for visitors, what this is."""
    if not request.user.is_authenticated:
        return render(
            request,
            "front.html",
            samples.context(offer.current())
            | {"quotes": pricing.quotes(), "signup_credits": settings.SIGNUP_CREDITS},
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
    quotes = pricing.quotes(user=request.user)
    wanted = form["preset"].value()
    chosen = next((quote for quote in quotes if quote.preset.name == wanted), None)
    default = next((quote for quote in quotes if quote.preset.is_default), quotes[0] if quotes else None)
    queue = line.now(jobs or [])
    expected = {quote.preset.pk: quote.expected_seconds for quote in quotes}
    return {
        "form": form,
        "quotes": quotes,
        "chosen": chosen or default,
        "cheapest": min(quotes, key=lambda quote: quote.cost, default=None),
        "queue": queue,
        "expected": expected,
        "before_it": queue.seconds_to_join(expected),
        "cooldown": admission.cooldown_left(request.user),
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
    context |= samples.context(offer.of(shown["queue"].nodes))
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
