"""Pages for people on Telegram: connecting an account, signing in by a one-time link, one video by a signed link."""

from typing import TypeVar

from allauth.account.internal.flows.login import record_authentication  # has no public name
from allauth.account.utils import perform_login
from django.contrib import messages
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from accounts.auth import SiteRequest, signed_in
from accounts.models import CreditAccount
from generation.models import GenerationJob
from generation.web.streaming import filename_for, serve_file
from telegram_bot import linking, links, users
from telegram_bot.models import LinkRequest, TelegramAccount
from telegram_bot.sending import outbox
from telegram_bot.texts import accounts as texts

MINUTES = round(linking.LIFE.total_seconds() / 60)

Answer = TypeVar("Answer", bound=HttpResponseBase)

# --- Connecting and disconnecting -----------------------------------------------------------------------------------


@signed_in("GET", "HEAD", "POST", lately=True)
def connect(request: SiteRequest) -> HttpResponse:
    """Show the stage; a POST makes a new link to the bot, which is shown in this one answer."""
    user, to_bot = request.user, None
    if request.method == "POST":
        if links.to_bot("link") is None:
            messages.error(request, _("The bot has not been running yet. Please try again later."))
            return redirect("account")
        try:
            to_bot = links.to_bot(f"link_{linking.begin_on_web(user=user)}")
        except linking.LinkError as error:
            messages.error(request, str(error))
            return redirect("account")
    stage, row = linking.stage_on_web(user)
    if stage == "none":
        return redirect("account")
    context: dict[str, object] = {"stage": stage, "row": row, "to_bot": to_bot, "minutes": MINUTES}
    if row is not None and row.account is not None:
        context["plan"] = linking.what_moves(row.account, user)
    return render(request, "telegram/connect.html", context)


@signed_in("GET", "HEAD")
def connect_state(request: SiteRequest, shown: str) -> HttpResponse:
    """Answer the page, which asks every few seconds, once what it shows no longer holds."""
    if linking.stage_on_web(request.user)[0] == shown:
        return HttpResponse(status=204)
    return HttpResponse(headers={"HX-Redirect": reverse("telegram_connect")})


@signed_in("POST")
def confirm(request: SiteRequest, request_id: int) -> HttpResponse:
    """Take the last word on the person who agreed in Telegram."""
    user = request.user
    row = LinkRequest.objects.filter(pk=request_id, user=user, began_on=LinkRequest.Side.WEB).first()
    if row is None:
        raise Http404
    if request.POST.get("answer") != "yes":
        return _declined(request, row)
    try:
        linking.confirm(row, by=user)
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("telegram_connect")
    account = TelegramAccount.objects.filter(user=user).first()
    if account is not None:
        with translation.override(users.language_of(account)):
            text = texts.joined(user, balance=CreditAccount.objects.get(user=user).balance)
            outbox.tell(chat_id=account.telegram_id, text=text)
    messages.success(request, _("Telegram is connected: one wallet, one history."))
    return redirect("account")


@signed_in("GET", "HEAD", "POST", lately=True)
def link(request: SiteRequest, token: str) -> HttpResponse:
    """Show the person in the chat who made the link; a POST answers, and the chat has the last word."""
    user = request.user
    try:
        row = linking.find(token, began_on=LinkRequest.Side.TELEGRAM)
        assert row.account is not None
        if request.method == "POST":
            return _answer(request, row, token)
        plan = linking.what_moves(row.account, user)
    except linking.LinkError as error:
        return render(request, "telegram/gone.html", {"why": str(error)}, status=410)
    return render(request, "telegram/link.html", {"account": row.account, "plan": plan, "token": token})


def _answer(request: SiteRequest, row: LinkRequest, token: str) -> HttpResponse:
    if request.POST.get("answer") != "yes":
        return _declined(request, row)
    try:
        answered = linking.answer_on_web(token=token, user=request.user)
    except linking.LinkGone:
        raise
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("account")
    account, user = answered.account, answered.user
    if row.answered_at is None and account is not None and user is not None:
        with translation.override(users.language_of(account)):
            text = texts.asks_to_join(user, linking.what_moves(account, user))
            outbox.tell(
                chat_id=account.telegram_id, text=text, markup=texts.yes_or_no("join", "joinno", row.pk)
            )
    return redirect("telegram_connect")


def _declined(request: SiteRequest, row: LinkRequest) -> HttpResponse:
    linking.decline(row)
    messages.info(request, _("Nothing was connected."))
    return redirect("account")


@signed_in("GET", "HEAD", "POST")
def disconnect(request: SiteRequest) -> HttpResponse:
    """Ask; a POST parts the two."""
    account = TelegramAccount.objects.filter(user=request.user).first()
    if account is None or account.former_user_id is None:
        messages.info(request, linking.NOT_JOINED)
        return redirect("account")
    if request.method != "POST":
        return render(request, "telegram/disconnect.html", {"account": account})
    try:
        linking.part(account=account)
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("account")
    with translation.override(users.language_of(account)):
        outbox.tell(chat_id=account.telegram_id, text=texts.parted(request.user.username))
    messages.success(request, _("Telegram is disconnected."))
    return redirect("account")


# --- Links from a chat ----------------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def login(request: HttpRequest, token: str) -> HttpResponse:
    """Ask, so that a preview burns nothing; a POST signs in, once. A second step is asked for in any case."""
    if request.method != "POST":
        if found := links.find_login(token):
            return _unlisted(render(request, "telegram/login.html", {"link": found, "token": token}))
    elif user := links.redeem_login(token):
        record_authentication(request, user, method="telegram")
        response: HttpResponse = perform_login(request, user)
        return response
    return _gone(request, _("This link was used or is too old. Send /login to the bot for a new one."))


@require_safe
@never_cache
def video(request: HttpRequest, signed: str) -> HttpResponse:
    """Show a video that was too large for Telegram, to everyone who has the link."""
    try:
        job = _shown(signed)
    except signing.SignatureExpired:
        return _gone(request, _("This link is too old. Send /login to the bot: your video is there."))
    return _unlisted(render(request, "telegram/video.html", {"job": job, "signed": signed}))


@require_safe
def video_file(request: HttpRequest, signed: str) -> HttpResponseBase:
    """Serve the MP4, in ranges when asked for; `?download` makes browsers save it."""
    try:
        job = _shown(signed)
    except signing.SignatureExpired:
        raise Http404 from None
    name, save = filename_for(job.prompt), "download" in request.GET
    return _unlisted(serve_file(request, str(job.video), filename=name, as_attachment=save))


def _shown(signed: str) -> GenerationJob:
    """Find the job of a link. Raises Http404, signing.SignatureExpired."""
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


def _gone(request: HttpRequest, why: str) -> HttpResponse:
    return _unlisted(render(request, "telegram/gone.html", {"why": why}, status=410))


def _unlisted(response: Answer) -> Answer:
    response["X-Robots-Tag"] = "noindex, nofollow"
    # The address is a secret: it must not travel on to where a link on the page leads.
    response["Referrer-Policy"] = "no-referrer"
    return response
