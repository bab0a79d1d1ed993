"""Ways in from a chat: signing in by a one-time link, and watching one video by a signed one."""

from typing import TypeVar, cast

from allauth.account.internal.flows.login import record_authentication
from allauth.account.utils import perform_login
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from telegram import InlineKeyboardButton

from accounts.models import CreditAccount, User
from generation.models import GenerationJob
from generation.web.streaming import filename_for, serve_file
from telegram_bot import language, linking, links, tokens
from telegram_bot.models import LinkRequest, LoginLink, TelegramAccount
from telegram_bot.sending import notices
from telegram_bot.texts import accounts as texts
from telegram_bot.texts.jobs import data

MINUTES = round(linking.LIFE.total_seconds() / 60)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def connect(request: HttpRequest) -> HttpResponse:
    """GET: how it stands. POST: a new link to the bot, which is shown in this one answer."""
    user = _user(request)
    if request.method == "POST":
        return _begin(request, user)
    stage = linking.stage_on_web(user)
    if stage.name == "none":
        return redirect("account")
    return _page(request, stage)


def _begin(request: HttpRequest, user: User) -> HttpResponse:
    if links.to_bot("link") is None:
        messages.error(request, _("The bot has not been running yet. Please try again later."))
        return redirect("account")
    try:
        token = linking.begin_on_web(user=user)[1]
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("account")
    return _page(request, linking.stage_on_web(user), to_bot=links.to_bot(f"link_{token}"))


def _page(request: HttpRequest, stage: linking.Stage, *, to_bot: str | None = None) -> HttpResponse:
    context: dict[str, object] = {"stage": stage, "to_bot": to_bot, "minutes": MINUTES}
    if stage.name == "confirm" and stage.row is not None and stage.row.account is not None:
        context["plan"] = linking.what_moves(stage.row.account, _user(request))
    return render(request, "telegram/connect.html", context)


@require_safe
@login_required
@never_cache
def connect_state(request: HttpRequest, shown: str) -> HttpResponse:
    """Asked by the page every few seconds: nothing while what it shows still holds, then where to go."""
    if linking.stage_on_web(_user(request)).name == shown:
        return HttpResponse(status=204)
    return HttpResponse(headers={"HX-Redirect": reverse("telegram_connect")})


@require_POST
@login_required
@never_cache
def confirm(request: HttpRequest, request_id: int) -> HttpResponse:
    """The last word on somebody who agreed in Telegram."""
    user = _user(request)
    row = LinkRequest.objects.filter(pk=request_id, user=user, began_on=LinkRequest.Side.WEB).first()
    if row is None:
        raise Http404
    if request.POST.get("answer") != "yes":
        linking.decline(row)
        messages.info(request, _("Nothing was connected."))
        return redirect("account")
    try:
        linking.confirm(row, by=user)
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("telegram_connect")
    _tell_joined(user)
    messages.success(request, _("Telegram is connected: one wallet, one history."))
    return redirect("account")


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def link(request: HttpRequest, token: str) -> HttpResponse:
    """A wish from a chat. GET shows who it is, POST answers; then the chat has the last word."""
    user = _user(request)
    try:
        row = linking.find(token, began_on=LinkRequest.Side.TELEGRAM)
        assert row.account is not None
        if request.method == "POST":
            return _answer(request, row, token)
        plan = linking.what_moves(row.account, user)
    except linking.LinkError as error:
        return render(request, "telegram/gone.html", {"why": str(error)}, status=410)
    return render(request, "telegram/link.html", {"account": row.account, "plan": plan, "token": token})


def _answer(request: HttpRequest, row: LinkRequest, token: str) -> HttpResponse:
    if request.POST.get("answer") != "yes":
        linking.decline(row)
        messages.info(request, _("Nothing was connected."))
        return redirect("account")
    try:
        answered = linking.answer_on_web(token=token, user=_user(request))
    except linking.LinkGone:
        raise
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("account")
    if row.answered_at is None:
        _ask_the_chat(answered)
    return redirect("telegram_connect")


def _ask_the_chat(row: LinkRequest) -> None:
    """Who answered on the web, in the chat that began it."""
    assert row.account is not None
    assert row.user is not None
    with translation.override(language.language_of(row.account)):
        yes = InlineKeyboardButton(texts.yes(), callback_data=data("join", str(row.pk)))
        no = InlineKeyboardButton(texts.no(), callback_data=data("joinno", str(row.pk)))
        words = texts.asks_to_join(
            row.user, linking.what_moves(row.account, row.user), site=links.site_name()
        )
        notices.tell(chat_id=row.account.telegram_id, text=words, buttons=[[yes, no]])


def _tell_joined(user: User) -> None:
    account = TelegramAccount.objects.filter(user=user).first()
    if account is not None:
        with translation.override(language.language_of(account)):
            words = texts.joined(user, balance=CreditAccount.objects.get(user=user).balance)
            notices.tell(chat_id=account.telegram_id, text=words)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def disconnect(request: HttpRequest) -> HttpResponse:
    """GET asks, POST does."""
    account = TelegramAccount.objects.filter(user=_user(request)).first()
    if account is None or account.former_user_id is None:
        messages.info(request, str(linking.NotJoined()))
        return redirect("account")
    if request.method != "POST":
        return render(request, "telegram/disconnect.html", {"account": account})
    try:
        linking.part(account=account)
    except linking.LinkError as error:
        messages.error(request, str(error))
        return redirect("account")
    with translation.override(language.language_of(account)):
        notices.tell(chat_id=account.telegram_id, text=texts.parted(_user(request).username))
    messages.success(request, _("Telegram is disconnected."))
    return redirect("account")


def _user(request: HttpRequest) -> User:
    return cast("User", request.user)


# Connecting an account on the web with somebody on Telegram, and disconnecting them.
#
# What is asked here is asked of somebody who is signed in, and done by POST.
#


Answer = TypeVar("Answer", bound=HttpResponseBase)


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def login(request: HttpRequest, token: str) -> HttpResponse:
    """GET asks, so that a preview burns nothing; POST signs in, once. A second step is asked for as ever."""
    if request.method != "POST":
        link = tokens.find(token)
        return _too_late(request) if link is None else _unlisted(_asks(request, link, token))
    user = tokens.redeem(token)
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
