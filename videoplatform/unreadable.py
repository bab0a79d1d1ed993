"""What no view can read is refused before any view tries."""

import codecs
from collections.abc import Callable

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse

READ = {"utf-8", "ascii"}


class RefuseUnreadable:
    """Middleware: answers 400 to a body in another charset than UTF-8, and to a NUL in an address of the admin."""

    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        _refuse_charsets(request)
        _refuse_nul(request)
        return self._get_response(request)


def _refuse_charsets(request: HttpRequest) -> None:
    """Python knows codecs (punycode, idna, zlib) that are no charsets, and Django decodes with whichever is named."""
    # None, too, where Python knows no such charset: then it is read as UTF-8.
    if request.encoding and codecs.lookup(request.encoding).name not in READ:
        request.encoding = "utf-8"  # the page that says so looks at the form, too
        raise BadRequest("a body in a charset other than UTF-8")


def _refuse_nul(request: HttpRequest) -> None:
    """Django's admin filters by whatever an address says, and PostgreSQL takes a NUL for no text."""
    address = request.path_info + request.META.get("QUERY_STRING", "")
    if request.path_info.startswith("/admin/") and ("\0" in address or "%00" in address):
        raise BadRequest("a NUL in the address")
