"""Signing in: allauth's adapter, passwords, sessions, pages for signed-in users, and the second factor of staff."""

import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from smtplib import SMTPException
from typing import Any, Concatenate, ParamSpec, cast
from urllib.parse import urlencode, urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.authentication import get_authentication_records
from allauth.account.decorators import reauthentication_required
from allauth.account.internal.flows.login import record_authentication
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter, get_adapter
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.views import redirect_to_login
from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from accounts import limits, spelling
from accounts.models import Ban, CreditAccount, User
from accounts.models.ciphers import decrypted, encrypted
from accounts.staff.actor import address_of

logger = logging.getLogger(__name__)
P = ParamSpec("P")

MIN_KEY_LENGTH = 8  # Django's own minimum
# Pages of the admin that show nothing.
OPEN_TO_ALL = {"login", "logout", "jsi18n"}
# The session's key for the page of the admin that is shown once the second step is set up.
STAFF_NEXT = "staff_next"
# The cookie by which a browser is known that an account was signed in with, and how many accounts it remembers.
DEVICE, DEVICE_AGE, DEVICE_ACCOUNTS = "device", 365 * 24 * 3600, 5
# A check that finds all places taken waits this long for one.
HASH_SECONDS = 0.3


class AccountAdapter(DefaultAccountAdapter):
    """allauth's adapter, for which an invalid address is unsafe and a failed mail is no failed request."""

    def is_safe_url(self, url: str | None) -> bool:
        """Check where to redirect after a sign-in; `http://[` is no address and never safe."""
        try:
            return bool(super().is_safe_url(url))
        except ValueError:
            return False

    def clean_username(self, username: str, shallow: bool = False) -> str:
        """Check the name that a person chooses. Raises ValidationError."""
        name: str = super().clean_username(username, shallow)
        spelling.check_name(name)
        return name

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send a mail, or say that it could not be sent: signing up and changing a password go on without it.

        An address gets few of them: its owner may not be the one who typed it.
        """
        try:
            limits.take("mail", email.lower())
            super().send_mail(template_prefix, email, context)
        except (SMTPException, OSError, limits.TooOften) as error:
            logger.warning("a mail (%s) could not be sent: %s", template_prefix, error)
            text = _("An email to %(address)s could not be sent just now. Please ask for it again later.")
            messages.error(self.request, text % {"address": email})

    def save_user(self, request: HttpRequest, user: User, form: Any, commit: bool = True) -> User:
        """Make the account of a sign-up, and say so where it starts without the usual credits."""
        user.came_by = limits.network_of(address_of(request))
        user = super().save_user(request, user, form, commit)
        if settings.SIGNUP_CREDITS and not CreditAccount.objects.get(user=user).posted:
            text = _("Free credits come once you have confirmed an email address.")
            if settings.UNVERIFIED_SIGNUP_CREDITS or not settings.EMAIL_HOST:
                text = _(
                    "Your network has had its free credits for new accounts today, so this one starts without."
                )
            messages.warning(request, text)
        return user

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        """Count a guess before it is checked, so that guesses sent at once count, too. Raises limits.TooOften.

        Guesses from elsewhere do not lock the owner out: they count for the name and their own network, and the bound
        for a name over all networks does not hold for a device that the account was signed in with before.
        """
        name = str(credentials.get("email") or credentials.get("username") or "").strip().lower()
        network, device = limits.network_of(address_of(request)), _device(request)
        known = Q(pk__in=device["users"]) & (Q(username__iexact=name) | Q(email__iexact=name))
        if device["users"] and User.objects.filter(known).exists():
            self._guesses = [("guess_device", f"{device['id']} {name}")]
        else:
            self._guesses = [("guess", f"{network} {name}"), ("guess_network", network), ("guess_name", name)]
        for limit, source in self._guesses:
            limits.take(limit, source)

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Check a password; a right one is no guess."""
        user: User | None = super().authenticate(request, **credentials)
        for limit, source in self._guesses if user else ():
            limits.give_back(limit, source)
        return user

    def is_reauthentication_required(self, *, app: str = "") -> bool:
        """Ask again unless this session has proved who it is lately; the sign-in itself counts.

        Who came by Telegram and has neither password nor second step signs in there once more.
        """
        request = context.request
        since = time.time() - settings.ACCOUNT_REAUTHENTICATION_TIMEOUT
        if any(record["at"] > since for record in get_authentication_records(request, request.user)):
            return False
        if not self.get_reauthentication_methods(request.user):
            messages.info(
                request, _("Please sign in anew for this, by /login in the chat; then do it again.")
            )
            raise ImmediateHttpResponse(redirect("account"))
        return True

    def respond_user_inactive(self, request: HttpRequest, user: User) -> HttpResponse:
        """Tell who knows the password why the account cannot be used."""
        return render(request, "account/account_inactive.html", {"why": Ban.words_for(user)}, status=403)

    def post_login(self, request: HttpRequest, user: User, **how: Any) -> HttpResponse:
        """Remember the device after a whole sign-in."""
        response: HttpResponse = super().post_login(request, user, **how)
        if how.get("signup"):
            record_authentication(request, user, "password")  # it was given a moment ago
        device = _device(request)
        users = [user.pk, *(pk for pk in device["users"] if pk != user.pk)][:DEVICE_ACCOUNTS]
        value = signing.dumps({"id": device["id"], "users": users}, salt=DEVICE)
        response.set_cookie(DEVICE, value, DEVICE_AGE, secure=settings.HTTPS, httponly=True, samesite="Lax")
        return response


class SecondStepAdapter(DefaultMFAAdapter):
    """allauth's adapter, which would keep the secrets of authenticator apps and recovery codes in clear."""

    def encrypt(self, text: str) -> str:
        return encrypted(text)

    def decrypt(self, encrypted_text: str) -> str:
        return decrypted(encrypted_text)


def _device(request: HttpRequest) -> dict[str, Any]:
    try:
        return dict(signing.loads(request.COOKIES.get(DEVICE, ""), salt=DEVICE, max_age=DEVICE_AGE))
    except signing.BadSignature:
        return {"id": secrets.token_hex(8), "users": []}


class BoundedHasher(PBKDF2PasswordHasher):
    """Django's own hash of passwords, of which only PASSWORD_CHECKS_AT_ONCE are made at once in a process.

    Each takes half a second of a core, also for a client that has left: without a bound, a few dozen posts keep all
    other pages waiting. Raises limits.TooBusy.
    """

    places = threading.BoundedSemaphore(settings.PASSWORD_CHECKS_AT_ONCE)

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        if not self.places.acquire(timeout=HASH_SECONDS):
            raise limits.TooBusy(2)
        try:
            return str(super().encode(password, salt, iterations))
        finally:
            self.places.release()


class SessionStore(DatabaseSessionStore):
    """Django's sessions, looked up only by keys that Django makes: PostgreSQL refuses a NUL from a forged cookie."""

    def _validate_session_key(self, key: str | None) -> bool:
        return key is not None and len(key) >= MIN_KEY_LENGTH and key.isascii() and key.isalnum()


# --- Pages for signed-in users ----------------------------------------------------------------------------------------


class SiteRequest(HttpRequest):
    """A request of a signed-in user."""

    user: User
    htmx: HtmxDetails


SiteView = Callable[Concatenate[SiteRequest, P], HttpResponseBase]
View = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def signed_in(*methods: str, lately: bool = False) -> Callable[[SiteView[P]], View[P]]:
    """Require these methods and a sign-in, to which htmx sends the whole browser. Nothing is cached.

    lately: a POST needs a sign-in, or the password or a code again, within ACCOUNT_REAUTHENTICATION_TIMEOUT.
    """

    def decorate(view: SiteView[P]) -> View[P]:
        @require_http_methods(methods)
        @functools.wraps(view)
        def wrapped(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return _redirect_to_sign_in(request)
            checked = reauthentication_required(view, allow_get=True) if lately else view
            response = checked(cast("SiteRequest", request), *args, **kwargs)
            if not response.has_header("Cache-Control"):
                add_never_cache_headers(response)
            return response

        return wrapped

    return decorate


def address_of_page(htmx: HtmxDetails) -> str:
    """Return the browser's address without scheme and host, as htmx claims it; any header can claim anything."""
    try:
        return urlsplit(htmx.current_url_abs_path or reverse("dashboard")).geturl()
    except ValueError:
        return reverse("dashboard")


def _redirect_to_sign_in(request: HttpRequest) -> HttpResponse:
    htmx = cast("SiteRequest", request).htmx
    if htmx:
        return HttpResponseClientRedirect(
            f"{reverse('account_login')}?{urlencode({'next': address_of_page(htmx)})}"
        )
    return redirect_to_login(request.get_full_path() if request.method == "GET" else reverse("dashboard"))


# --- Staff ------------------------------------------------------------------------------------------------------------


def lead_to_sign_in(request: HttpRequest) -> HttpResponse:
    """Lead from the admin to the site's sign-in, the only one; it comes back to the page that was wanted."""
    if request.user.is_authenticated:
        raise PermissionDenied("This account has no right to the admin.")
    return redirect_to_login(request.GET.get("next") or reverse("admin:index"))


class RequireSecondFactor:
    """Middleware: staff set a second step up, or use the one they have, before they see the admin.

    Applies while STAFF_REQUIRE_MFA is on.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponse | None:
        match, user = request.resolver_match, cast("User", request.user)
        if not settings.STAFF_REQUIRE_MFA or match is None or match.app_name != "admin":
            return None
        if match.url_name in OPEN_TO_ALL or not (user.is_authenticated and user.is_staff):
            return None
        return _require_second_factor(request, user)


def _require_second_factor(request: HttpRequest, user: User) -> HttpResponse | None:
    records = get_authentication_records(request, user)
    if not get_adapter().is_mfa_enabled(user):
        messages.warning(request, _("Staff need two-step sign-in: please set it up, then you go on."))
        request.session[STAFF_NEXT] = request.get_full_path()
        return HttpResponseRedirect(reverse("mfa_activate_totp"))
    if any(record["method"] == "mfa" for record in records):
        request.session.pop(STAFF_NEXT, None)
        return None
    query = urlencode({"next": request.get_full_path()})
    return HttpResponseRedirect(f"{reverse('mfa_reauthenticate')}?{query}")


@receiver(authenticator_added, dispatch_uid="accounts.staff.count_as_used")
def count_as_used(request: HttpRequest, user: User, authenticator: Authenticator, **_: Any) -> None:
    """Count a second step that was just set up as one just used."""
    if authenticator.type != Authenticator.Type.RECOVERY_CODES:
        record_authentication(request, user, "mfa", id=authenticator.pk, type=authenticator.type)
