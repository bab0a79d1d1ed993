"""The choice of a user's language: the one they chose, else the one their browser asks for."""

import functools
import hashlib
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.middleware.locale import LocaleMiddleware
from django.utils import translation

from accounts.models import User

# Programs and staff read English: the API's messages are part of its contract, the admin has messages of ours without
# a translation. A probe of the health must not depend on a session in the database.
ALWAYS_ENGLISH = ("/v1/", "/admin/", "/healthz")


class LanguageMiddleware(LocaleMiddleware):
    """Django's middleware, with the language that a signed-in user chose once on every machine."""

    def process_request(self, request: HttpRequest) -> None:
        if request.path_info.startswith(ALWAYS_ENGLISH):
            _activate(request, settings.LANGUAGE_CODE)
            return
        # The browser's language first: should the database be away, the error page is in it.
        _activate(request, translation.get_language_from_request(request))
        _activate(request, language_for(request, request.user))

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path_info.startswith(ALWAYS_ENGLISH):
            return response
        return super().process_response(request, response)


def language_for(request: HttpRequest, user: User | AnonymousUser) -> str:
    """Choose the user's language, a code of settings.LANGUAGES."""
    chosen = user.language if isinstance(user, User) else ""
    return chosen or translation.get_language_from_request(request)


def remember(*, user: User, language: str) -> None:
    """Keep the user's choice for the web, the bot and mails."""
    User.objects.filter(pk=user.pk).update(language=language)


def is_supported(language: str) -> bool:
    return language in dict(settings.LANGUAGES)


@functools.cache
def catalog_version(language: str) -> str:
    """Hash the scripts' message catalog, so that browsers may keep it for good under an address with the hash."""
    catalogs = [Path(folder) / language / "LC_MESSAGES" / "djangojs.mo" for folder in settings.LOCALE_PATHS]
    contents = b"".join(path.read_bytes() for path in catalogs if path.exists())
    return hashlib.sha256(contents).hexdigest()[:12]


def _activate(request: HttpRequest, language: str) -> None:
    translation.activate(language)
    request.LANGUAGE_CODE = translation.get_language()
