"""Authentication and formats of the REST API: keys (`Authorization: Bearer <key>`), JSON and forms in, JSON out.

Apart from `errors`: REST framework loads these while it is itself being imported.
"""

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import IO, Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed, ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.permissions import SAFE_METHODS
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from accounts import api_keys, limits, security_log
from accounts.models import ApiKey, Ban, User
from accounts.staff.actor import address_of
from generation.errors import AccountInactive

REALM = 'Bearer realm="api"'
READS = limits.Merged("api_read")


class ApiKeyAuthentication(BaseAuthentication):
    """Authenticates the owner of a live API key. No header is anonymous; a wrong header is refused.

    Counts, too: wrong keys by network, calls by key. Raises limits.TooOften.
    """

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        header = get_authorization_header(request)
        if not header:
            return None
        key = key_of_header(header)
        if key is None:
            limits.take("api_wrong_key", limits.network_of(address_of(request)))
            security_log.note_wrong_key(request)
            raise AuthenticationFailed("This API key is not valid.")
        if request.method in SAFE_METHODS:
            READS.take(str(key.pk))
        else:
            limits.take("api_create", str(key.pk))
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        return REALM


def key_of_header(header: bytes) -> ApiKey | None:
    """Find the live key that an Authorization header names. Any bytes are fine. Raises AccountInactive."""
    scheme, _, secret = header.partition(b" ")
    key = api_keys.verify(secret.strip().decode("latin-1")) if scheme.lower() == b"bearer" else None
    if key is not None and not key.user.is_active:
        raise AccountInactive(Ban.words_for(key.user))
    return key


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """ApiKeyAuthentication in the OpenAPI document."""

    target_class = "generation.api.auth.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}


# --- Formats ----------------------------------------------------------------------------------------------------------


class AnyAccept(BaseContentNegotiation):
    """The body decides the parser; `Accept` decides nothing.

    A client that downloads a clip asks for `application/binary` or `video/mp4`, and gets an error in JSON.
    """

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        if kind in ("", "text/json") or kind.endswith("+json"):  # a body without a type is JSON as well
            kind = PlainJSONParser.media_type
        return next((parser for parser in parsers if parser.media_type == kind), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, str(first.media_type)


class PlainJSONParser(JSONParser):
    """JSON, with or without a byte order mark; what nests too deeply for the parser's stack is bad input."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        body = stream.read()
        try:
            return super().parse(BytesIO(body.removeprefix(BOM_UTF8)), media_type, parser_context)
        except RecursionError:
            raise ParseError("JSON parse error - too deeply nested") from None
