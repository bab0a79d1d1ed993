"""Layers in front of the views: limits for bodies, requests that are finished, readers who take their time, refusal of
what is unreadable, headers of all pages, the access log.
"""

import asyncio
import codecs
import logging
import os
import re
import time
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any, cast

from asgiref.sync import SyncToAsync, sync_to_async
from csp.middleware import CSPMiddleware, PolicyParts
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import BadRequest
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.db import close_old_connections
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.encoding import iri_to_uri
from django.utils.functional import SimpleLazyObject
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile

from accounts.privacy import read_in_threads
from accounts.staff.actor import address_of
from generation.api import errors
from generation.api.errors import App, Message, Receive, Send

logger = logging.getLogger(__name__)

# Bytes a second that a body must come at, once REQUEST_SECONDS have passed: a poor telephone line.
SLOWEST = 1024


class BodyRefused(Exception):
    """The body is longer than any view takes, or it came too slowly."""

    def __init__(self, problem: errors.Problem) -> None:
        self.problem = problem


class BodyLimit:
    """ASGI layer: answers 413 to a body longer than MAX_REQUEST_BYTES, by its header or while it comes, and 408 to one
    that stalls. Django looks at a body only after it has written all of it to the disk; a body that is waited for here
    holds neither a thread nor a database connection.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        watched = _Watched(receive, send)
        try:
            if _announced(scope) > settings.MAX_REQUEST_BYTES:
                raise BodyRefused(errors.TOO_LARGE)
            await self._inner(scope, watched.receive, watched.send)
        except BodyRefused as refused:
            if watched.answered:
                raise
            await errors.refuse(refused.problem, scope, receive, send)


class _Watched:
    """Receive and send of one request; counts and times the bytes of the body."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._bytes = 0
        self._begun = asyncio.get_running_loop().time()
        self._complete = False
        self.answered = False

    async def receive(self) -> Message:
        message = await self._next()
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > settings.MAX_REQUEST_BYTES:
            raise BodyRefused(errors.TOO_LARGE)
        return message

    async def _next(self) -> Message:
        if self._complete:  # only the end of the connection is still to come
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._begun + settings.REQUEST_SECONDS + self._bytes / SLOWEST):
                return await self._receive()
        except TimeoutError:
            raise BodyRefused(errors.TOO_SLOW) from None

    async def send(self, message: Message) -> None:
        self.answered = True
        await self._send(message)


def _announced(scope: Message) -> int:
    """Return Content-Length. The server has refused one that is no number."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value) if len(value) < 19 else settings.MAX_REQUEST_BYTES + 1
    return 0


class FinishCancelled:
    """ASGI layer: Django finishes a request although the server has cancelled it.

    The last thing that Django does for a request is to give its database connection back to the pool. Three seconds
    after a client has left, the server cancels what still runs; behind a slow query that would cancel the giving back
    as well, and the pool would be short of a connection for good.
    """

    def __init__(self, inner: App) -> None:
        self._inner = inner
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request = asyncio.ensure_future(self._inner(scope, receive, send))
        self._running.add(request)  # the event loop itself keeps no reference to a task
        request.add_done_callback(self._running.discard)
        await asyncio.shield(request)


class MeasuredRequest(ASGIRequest):
    """A request whose Content-Length is the size of its body.

    A body sent in chunks (RFC 9112, 7.1), as by clients that stream it, comes without that header, and Django's readers
    of forms as well as REST framework's take a request without it for one without a body.
    """

    def __init__(self, scope: Message, body_file: IO[bytes]) -> None:
        super().__init__(scope, body_file)
        if size := body_file.seek(0, os.SEEK_END):
            self.META["CONTENT_LENGTH"] = str(size)
        body_file.seek(0)


class PatientHandler(ASGIHandler):
    """Django's own handler, with requests that know the size of their body, and answers that wait for their readers
    without the request's own thread and its connection to the database.
    """

    request_class = MeasuredRequest

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        if not isinstance(response, HttpResponse) or len(response.content) > self.chunk_size:
            await sync_to_async(close_old_connections)()
            context = SyncToAsync.thread_sensitive_context.get()
            if thread := SyncToAsync.context_to_thread_executor.pop(context, None):
                thread.shutdown(wait=False)  # Django makes another one to close the response
        await super().send_response(response, send)  # type: ignore[arg-type]


class StaticFiles(WhiteNoiseMiddleware):
    """WhiteNoise whose files are sent piece by piece. Under ASGI Django reads an ordinary FileResponse whole."""

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> FileResponse:
        response: FileResponse = WhiteNoiseMiddleware.serve(static_file, request)
        if (file := response.file_to_stream) and isinstance(request, ASGIRequest):
            response.streaming_content = read_in_threads(iter(lambda: file.read(ASGIHandler.chunk_size), b""))
        return response


class PageHeaders(CSPMiddleware):
    """Middleware: the content security policy, and an empty cache after signing out."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        parts = super().get_policy_parts(request, response, report_only)
        for prefix, more in settings.LOOSER_POLICIES.items():
            if request.path_info.startswith(prefix):
                parts.update = more
        return parts

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        user = getattr(request, "user", None)
        # A user of the session is lazy. One who signs out is replaced; the API's own user comes by a key.
        if type(user) is AnonymousUser and not request.path_info.startswith(errors.API_PREFIX):
            response["Clear-Site-Data"] = '"cache"'
        if isinstance(user, SimpleLazyObject):  # not looked up for the log's sake
            user = getattr(request, "_cached_user", None)
        if user is not None and isinstance(request, ASGIRequest):
            cast("Message", request.scope)["user"] = user.pk
        answered: HttpResponseBase = super().process_response(request, response)
        return answered


class AccessLog:
    """ASGI layer: writes one line a request, without its query, and with keys and tokens in its path left out."""

    # All of them are longer; ids of videos are none, names of files have a dot.
    _SECRET = re.compile(r"/(?!video_)[\w:=~%-]{20,}(?=/|$)")

    def __init__(self, inner: App) -> None:
        self._inner = inner

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        begun, status, sent = time.monotonic(), 0, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            await send(message)
            status, sent = message.get("status", status), sent + len(message.get("body", b""))

        try:
            await self._inner(scope, receive, counted)
        finally:
            client, path = address_of(ASGIRequest(scope, BytesIO())), iri_to_uri(str(scope["path"]))
            shown, took = self._SECRET.sub("/…", path), (time.monotonic() - begun) * 1000
            request = client, scope["method"], shown, status or "-", sent, took, scope.get("user") or "-"
            logger.info("%s %s %s %s %d bytes %d ms user %s", *request)


READABLE_CHARSETS = {"utf-8", "ascii"}


class RefuseUnreadable:
    """Middleware: answers 400 to a body in another charset than UTF-8, and to a NUL in an address of the admin."""

    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        # Python knows codecs (punycode, idna, zlib) that are no charsets, and Django decodes with any that is named.
        # request.encoding is None where Python knows no such charset: then the body is read as UTF-8.
        if request.encoding and codecs.lookup(request.encoding).name not in READABLE_CHARSETS:
            request.encoding = "utf-8"  # the error page reads the form, too
            raise BadRequest("a body in a charset other than UTF-8")
        # Django's admin filters by any parameter of an address, and PostgreSQL refuses a NUL in a text.
        address = request.path_info + request.META.get("QUERY_STRING", "")
        if request.path_info.startswith("/admin/") and ("\0" in address or "%00" in address):
            raise BadRequest("a NUL in the address")
        return self._get_response(request)
